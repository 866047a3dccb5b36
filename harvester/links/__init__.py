"""Lists of bitlinks in every accepted form, read as batches of links.

In: paths, glob patterns, standard input, or an iterable from Python. Out: a stream of `Batch`es, each with its links,
their file and line, its invalid lines, and counts that add up to its lines. Memory does not grow with a list.
"""
