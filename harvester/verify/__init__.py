"""Checks that an output is whole and consistent: an output's files go in, `Findings` come out, and nothing is written.

`verify` reads manifest, parts, failures and ledger; `row_checks`, `sidecar_checks`, `ledger_checks` and `duplicates`
each know one kind of check.
"""
