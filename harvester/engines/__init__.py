"""Calls made by a cluster's tasks instead of the workers of one process; one driver keeps the dataset.

In: calls of a list. Out: the answers, in logs in a folder that driver and tasks share.
"""
