"""The links of an account's groups: read page by page, durable after each, and published as a table.

A page that was read is not asked for again: it stands in a journal before the next one is requested.
"""
