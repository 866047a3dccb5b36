"""How a command line is read: plain ones by `plain`, at once; every other, and `--help`, by cyclopts in `app`.

In: words and variables. Out: the function of a command with its arguments.
"""

COMMANDS = {
    **dict.fromkeys(("run", "plan"), "harvester.cli.harvesting"),
    **dict.fromkeys(("show", "status", "verify", "repair", "report", "top"), "harvester.cli.outputs"),
    **dict.fromkeys(("groups", "links", "normalize"), "harvester.cli.account"),
    **dict.fromkeys(("init", "config", "login", "logout", "schema", "demo", "sandbox"), "harvester.cli.first_steps"),
}
"""Command to the module of its function."""
