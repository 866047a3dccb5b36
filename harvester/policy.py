"""Which calls that the ledger knows are made again."""

from harvester.ledger import Known, State

FAILED_INVOCATIONS = 3
"""After failing in so many invocations a call is left alone, unless it is asked for."""


def wanted_again(known: Known, *, retry_failed: bool, retry_refused: bool) -> bool:
    """Say whether a call that the ledger knows is to be made again."""
    if known.state is State.FAILED:
        return retry_failed or known.tries < FAILED_INVOCATIONS
    return known.state is State.REFUSED and retry_refused
