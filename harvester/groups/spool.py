"""The links of groups as the list of a run: spooled in the private folder, so that a resumed run reads the same list.

The pages lie in a journal, and the list is made of it when the last page was read. Both stay as long as the private
folder does, so a list is bought once for an output; a new output lists anew.

The outputs of one command that have no list yet get a new one together. Its pages are read into a folder in the private
folder of the first of them, and the journal there names all outputs that it is for: after a kill they take up the pages
that were paid for, and no older ones. Each run then takes the list over into its own private folder, and needs no other
output from then on.
"""

import asyncio
import glob
import os
import secrets
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from harvester.bitly.groups import NoLink
from harvester.clock import utc_iso
from harvester.errors import RunStopping, as_output_error
from harvester.groups.journal import ListRequest, ListState, PageJournal, outputs_in, read_state
from harvester.jsonlines import one_line
from harvester.shutdown import ShutdownSignal, Stop
from harvester.storage.filesystem import atomic_replace, link_or_copy, make_folder, remove_empty
from harvester.storage.watch import FolderLock

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


def is_read(folder: str, request: ListRequest) -> bool:
    """Return whether a folder has the list of a request."""
    return os.path.exists(f"{base_of(folder, request)}.list")  # made last


def read_before(folder: str, request: ListRequest) -> Spooled | None:
    """Return the list of a request if all of it was read before; needs no lock. folder: the private state."""
    base = base_of(folder, request)
    if not is_read(folder, request):
        return None
    state = read_state(f"{base}.pages")
    return Spooled(f"{base}.list", state) if state is not None and state.ended is not None else None


async def spooled(folder: str, request: ListRequest, complete: Complete, outputs: Sequence[str] = ()) -> Spooled:
    """Return the list of a request, after reading the pages that are missing.

    folder: the private state, whose lock the caller holds. complete: reads the pages that a journal lacks. outputs:
    those that a new list is for, if several.

    Raises:
        RunStopping: the list could not be read to its end; what was read is kept. OutputError: as PageJournal.
    """
    base = base_of(folder, request)
    journal = PageJournal(f"{base}.pages")
    try:
        journal.open(request, secrets.token_hex(6), utc_iso(datetime.now(UTC)), outputs)
        try:
            await complete(journal, request)
        except RunStopping:
            if not journal.state.pages:  # nothing is lost, and a guid that does not exist leaves nothing behind
                os.unlink(f"{base}.pages")
            raise
        return Spooled(_list_made(f"{base}.list", journal), journal.state)
    finally:
        journal.close()


def taken_over(folder: str, private: str, request: ListRequest) -> None:
    """Put the list of another folder into a private folder, as hard links: nothing writes to it any more.

    Raises:
        OutputError: the files cannot be copied, where there are no links.
    """
    for ending in (".pages", ".list"):
        source, target = (f"{base_of(each, request)}{ending}" for each in (folder, private))
        with as_output_error(target):
            link_or_copy(source, target)


def base_of(folder: str, request: ListRequest) -> str:
    """Return the paths of a request's files without their endings."""
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


# --- a list for several outputs ------------------------------------------------------------------------------------

ReadsList: TypeAlias = Callable[[str, Sequence[str]], Awaitable[Spooled]]
"""Reads the list of a request into a folder, for the outputs named, unless it is there."""


class SharedList:
    """A list for several outputs. folder: where its pages are read. outputs: whose it is, as the journal names them."""

    def __init__(self, folder: str, outputs: Sequence[str]) -> None:
        self.folder = folder
        self.outputs = outputs
        self._turn = asyncio.Lock()
        self._stop: Stop | None = None

    def folder_for(self, private: str, request: ListRequest) -> str:
        """Return the folder where an output's list is, or will be read. private: the output's own."""
        return private if is_read(private, request) else self.folder

    async def found(self, private: str, request: ListRequest, read: ReadsList, shutdown: ShutdownSignal) -> Spooled:
        """Return an output's list; the first run that needs it reads the pages, and the others wait for that.

        private: the output's own folder, whose lock the caller holds.

        Raises:
            RunStopping: the list could not be read to its end, by this run or by the one before. OutputError: as
            `read`. DatasetBusy: another process reads it.
        """
        if is_read(private, request):
            return await read(private, ())
        async with self._turn:
            if self._stop is not None:
                shutdown.request(self._stop)
            if shutdown.stop is not None:
                raise RunStopping
            with as_output_error(self.folder):
                made = make_folder(self.folder)
            try:
                with FolderLock(self.folder, self.folder):
                    found = await read(self.folder, self.outputs)
            except RunStopping:
                self._stop = shutdown.stop
                remove_empty(made)
                raise
        taken_over(self.folder, private, request)
        return read_before(private, request) or found


def shared_lists(privates: Mapping[str, str], request: ListRequest) -> dict[str, SharedList]:
    """Return the list of each of a command's outputs that has none of its own yet.

    privates: the private folders of all outputs, by names that are the same whenever the command is repeated.

    Raises:
        OutputError: a folder cannot be looked into.
    """
    lacking = [name for name, private in privates.items() if not is_read(private, request)]
    found: dict[str, SharedList] = {}
    for private in privates.values():
        for begun in _begun_in(private, request):
            found |= {name: begun for name in begun.outputs if name in lacking and name not in found}
    if rest := [name for name in lacking if name not in found]:
        folder = f"{base_of(privates[rest[0]], request)}-{zlib.crc32(repr(rest).encode()):08x}"
        found |= dict.fromkeys(rest, SharedList(folder, rest))
    return found


def _begun_in(private: str, request: ListRequest) -> Iterator[SharedList]:
    """Yield the lists for several outputs whose pages are in a private folder, all or some."""
    with as_output_error(private):
        folders = sorted(glob.glob(f"{glob.escape(base_of(private, request))}-*/"))
    for folder in folders:
        if outputs := outputs_in(f"{base_of(folder, request)}.pages"):
            yield SharedList(folder, outputs)
