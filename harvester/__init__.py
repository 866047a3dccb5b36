"""Bitly metrics in bulk: a file of bitlinks in, NDJSON rows out."""

__version__ = "0.1.0"
