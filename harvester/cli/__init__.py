"""The command `harvester`.

In: a command line. Out: standard output for results, standard error for people or as JSON events, and an exit code. The
only package that prints, handles signals and ends the process.
"""
