"""The calls that a list needs: counted before a run, and handed out in it.

In: batches of links, and what the ledger knows of them. Out: `Call`s. `worklist` sorts the list into calls; `preflight`
counts it before the first call and compares it with the month; `list_count` is what it finds.
"""
