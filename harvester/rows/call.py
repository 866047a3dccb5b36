"""The state of a call: what is known of it, and a verdict as it is committed."""

from enum import IntEnum
from typing import NamedTuple

GIVEN_UP_RUNS = 3
"""After this many runs in which a call failed it is not made again without --retry-failed."""


class CallState(IntEnum):
    """The last verdict on a call."""

    ROW = 0
    REFUSED = 1
    FAILED = 2


ROW_STATE, REFUSED_STATE, FAILED_STATE = CallState
"""The states for code that runs once a call: Python 3.11 looks a member up in its class by a function of Python's."""


class Shortfall(NamedTuple):
    """What a row lacks of what was requested, and whether it was requested at all.

    truncated: as many metrics came as were requested, so there are probably more. clipped: Bitly used fewer units than
    were requested, because the plan keeps a shorter history; never where all units were requested (-1).
    idle: no call was made, because the export of the link's group states that it has no clicks.
    """

    truncated: bool = False
    clipped: bool = False
    idle: bool = False


WHOLE, IDLE = Shortfall(), Shortfall(idle=True)


class Known(NamedTuple):
    """What the ledger knows of a call. failed_runs: how many runs it failed in. seen: the last run that listed it.

    Where rows are refreshed, shortfall: its last row's; asked_at: the end of the window that its last answer is for, in
    seconds since 1970, None before the first; clicks, clicks_before: of its last row and of the one before.
    """

    state: CallState
    failed_runs: int
    seen: int
    shortfall: Shortfall = WHOLE
    asked_at: int | None = None
    clicks: int | None = None
    clicks_before: int | None = None


class Totals(NamedTuple):
    """The number of a dataset's calls by state, in the order of CallState; and of its rows by their Shortfall."""

    rows: int
    refused: int
    failed: int
    truncated: int = 0
    clipped: int = 0
    idle: int = 0


class Entry(NamedTuple):
    """A call's verdict to be committed. line: its JSON in `_failures.ndjson`, None for a row. shortfall: the row's.

    asked_at, clicks: as in Known; needed where rows are refreshed.
    """

    key: bytes
    state: CallState
    line: bytes | None
    shortfall: Shortfall = WHOLE
    asked_at: int | None = None
    clicks: int | None = None
