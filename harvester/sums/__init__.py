"""Sums over the published rows of outputs, made by DuckDB in bounded memory.

In: outputs, found by a folder, a growing file, an object store's URL or a layout. Out: figures, which `report` shows.
"""
