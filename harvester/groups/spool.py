"""The links of groups as the list of a run: spooled in the private folder, so that a resumed run reads the same list.

The pages lie in a journal, and the list is made of it when the last page was read. Both stay as long as the private
folder does, so a list is bought once for an output; a new output lists anew.
"""

import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from harvester.bitly.groups import NoLink
from harvester.clock import utc_iso
from harvester.errors import RunStopping, as_output_error
from harvester.groups.journal import ListRequest, ListState, PageJournal, read_state
from harvester.jsonlines import one_line
from harvester.storage.filesystem import atomic_replace

Complete: TypeAlias = Callable[[PageJournal, ListRequest], Awaitable[None]]
COLUMN = "bitlink"
CARRIED = ("id", "title", "tags", "created_at", "group")
"""The other columns of the list, which --carry may name. id: of a custom bitlink, the link that it was made for."""
_MOST_BYTES = 32 * 1024
"""In a longer line the values are cut, because a list's lines have a limit."""
_CUT_CHARACTERS = 2000
"""Too many to be carried, so a value that was cut is refused, like any that is too long."""


class Spooled(NamedTuple):
    """A list that was read to its end. path: NDJSON with the links in COLUMN. state: what its journal says."""

    path: str
    state: ListState


def read_before(folder: str, request: ListRequest) -> Spooled | None:
    """Return the list of a request if all of it was read before; needs no lock. folder: the private state."""
    base = _base(folder, request)
    if not os.path.exists(f"{base}.list"):  # made last
        return None
    state = read_state(f"{base}.pages")
    return Spooled(f"{base}.list", state) if state is not None and state.ended is not None else None


async def spooled(folder: str, request: ListRequest, complete: Complete) -> Spooled:
    """Return the list of a request, after reading the pages that are missing.

    folder: the private state, whose lock the caller holds. complete: reads the pages that a journal lacks.

    Raises:
        RunStopping: the list could not be read to its end; what was read is kept. OutputError: as PageJournal.
    """
    base = _base(folder, request)
    journal = PageJournal(f"{base}.pages")
    try:
        journal.open(request, secrets.token_hex(6), utc_iso(datetime.now(UTC)))
        try:
            await complete(journal, request)
        except RunStopping:
            if not journal.state.pages:  # nothing is lost, and a guid that does not exist leaves nothing behind
                os.unlink(f"{base}.pages")
            raise
        return Spooled(_list_made(f"{base}.list", journal), journal.state)
    finally:
        journal.close()


def _base(folder: str, request: ListRequest) -> str:
    return os.path.join(folder, f"group-{request.key}")


def _list_made(path: str, journal: PageJournal) -> str:
    """Make the list of a journal that has its last page, unless it is there, and return its path."""
    if not os.path.exists(path):
        with as_output_error(path):
            atomic_replace(path, _lines(journal))
    return path


def _lines(journal: PageJournal) -> Iterator[bytes]:
    """Yield a line for each bitlink that is counted apart, and for each entry that is none: the run reports it."""
    for links, bad in journal.pages():
        for link in links:
            beside = {name: getattr(link, name) for name in CARRIED}
            for name in link.names():
                yield _line({COLUMN: name, **beside})
        for each in bad:
            yield _line({COLUMN: _shown(each), **dict.fromkeys(CARRIED)})  # the first line shows all columns


def _line(record: dict[str, Any]) -> bytes:
    line = one_line(record)
    if len(line) > _MOST_BYTES:
        texts = {name: "".join(value) if isinstance(value, list) else value for name, value in record.items()}
        line = one_line({name: value and value[:_CUT_CHARACTERS] for name, value in texts.items()})
    return line + b"\n"


def _shown(bad: NoLink) -> str:
    return bad.text.strip() or bad.reason
