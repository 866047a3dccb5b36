"""The datasets of one command: their options, and their runs one after another and side by side.

`expansion` makes a dataset's options of a command's, `window` checks once for all that Bitly's windows are the periods
asked for, `several` runs them, and `combined` adds up their progress.
"""
