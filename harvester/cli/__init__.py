"""The command `harvester`.

In: a command line. Out: standard output for results, standard error for people or as JSON events, and an exit code.
What is printed goes through `reporting`; here signals end the run, or the process.
"""
