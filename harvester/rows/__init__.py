"""The published row: its schema, its JSON line, the files that hold it, and its schema in the words of loaders.

In: a verdict and its call, or a published file. Out: a line of NDJSON, the bytes of a part in one of four formats and
two shapes, or a file's rows again. `schema` defines the columns once; everything else is derived from it.
"""
