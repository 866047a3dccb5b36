"""What survives a crash, and how it is published.

In go verdicts; out come parts, one growing file or a stream of rows, and the `_` files beside them. `opening` begins or
recovers a dataset; `dataset` records and commits; `journal` and `ledger` are its private state; the publishers bring
committed rows to the consumer; `sidecars` writes the `_` files, and `manifest` reads one of them.
"""
