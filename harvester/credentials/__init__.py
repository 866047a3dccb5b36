"""The token and other secrets: where they come from, where a login stores them, and what of them may be shown.

In: the options that name a source, its file, command, keyring or variable, or what Python passes. Out: a function that
reads the token. No error and no text repeats a secret.
"""
