"""`python -m harvester` is the `harvester` command."""

from harvester.cli.main import main

if __name__ == "__main__":
    main()
