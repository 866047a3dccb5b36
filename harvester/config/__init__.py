"""Where options and secrets come from.

In: the command line, HARVESTER_ variables, a TOML file, Python's keywords; the token's file, command, keyring or
variable. Out: options as dataclasses, each value's source, typed values with units, and a function that reads the
token.
"""
