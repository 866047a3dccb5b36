"""Bitly metrics in bulk: a file of bitlinks in, NDJSON rows out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harvester._version import __version__ as __version__

if TYPE_CHECKING:
    from harvester.api import harvest, metrics, stream
    from harvester.arrow import read
    from harvester.bitly.bitlinks import bitlink
    from harvester.errors import (
        BudgetUnreachable,
        ConnectionsBusy,
        DatasetBusy,
        HarvesterError,
        InvalidBitlink,
        LinkFailed,
        LinkRefused,
        NoRow,
        OutputError,
        RunStopped,
        UsageError,
    )
    from harvester.reports.report import report


__all__ = [
    "BudgetUnreachable",
    "ConnectionsBusy",
    "DatasetBusy",
    "HarvesterError",
    "InvalidBitlink",
    "LinkFailed",
    "LinkRefused",
    "NoRow",
    "OutputError",
    "RunStopped",
    "UsageError",
    "bitlink",
    "harvest",
    "metrics",
    "read",
    "report",
    "stream",
]

_HOMES = {
    "bitlink": "bitly.bitlinks",
    "harvest": "api",
    "metrics": "api",
    "stream": "api",
    "read": "arrow",
    "report": "reports.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command must not wait for aiohttp."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
