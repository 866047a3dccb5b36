"""Where options come from.

In: the command line, HARVESTER_ variables, a TOML file, Python's keywords. Out: options as dataclasses, each value's
source, typed values with units; and what is wrong, in words (`mistakes`).
"""
