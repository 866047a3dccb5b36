"""The table of links as a folder: parts, `_manifest.json`, `_failures.ndjson` and `_SUCCESS`, made from the journal.

Nothing is published before the last page was read: half a table would make links vanish from a join. A part is written
under a hidden name, then named in the journal, then published. What is named there and found nowhere was published,
and a loader has taken it.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

import orjson

from harvester._version import __version__
from harvester.bitly.groups import GroupLink
from harvester.clock import utc_iso
from harvester.errors import OutputError, UsageError, as_output_error
from harvester.groups.journal import ListRequest, PageJournal, PartIntent
from harvester.groups.table import LinksFormat, write_rows
from harvester.jsonlines import as_json, one_line
from harvester.rows.encode import HashingWriter
from harvester.shutdown import Stop
from harvester.storage.filesystem import make_folder, open_new, sync_file
from harvester.storage.folders import has_ledger, resolve
from harvester.storage.location import FAILURES, MANIFEST, SUCCESS, OutputKind
from harvester.storage.scratch import DistinctKeys
from harvester.storage.storage import LocalStorage
from harvester.storage.watch import FolderLock

JOURNAL = "links.pages"
_PART_ROWS = 1_000_000
_SCRATCH = "scratch.sqlite"


class LinksOutput:
    """A folder that gets the table of links; made by `opened`. journal: what was read so far."""

    def __init__(self, folder: str, private: str, journal: PageJournal, request: ListRequest, format_: LinksFormat):
        self.journal = journal
        self._private = private
        self._request = request
        self._format: LinksFormat = format_
        self._public = LocalStorage(folder)

    @property
    def complete(self) -> bool:
        """True once the table is published."""
        return self._public.get(SUCCESS) is not None

    def check(self) -> None:
        """Compare the parts that are there with what was written. Raises OutputError for one that differs."""
        for part in self.journal.state.parts:
            self._recover(part)

    def publish(self) -> None:
        """Publish the table of a journal that has its last page; what is published already stays as it is.

        Raises:
            OutputError: it cannot be written. UsageError: a library is missing.
        """
        state = self.journal.state
        self.check()
        with as_output_error(self._public.path("")), DistinctKeys(os.path.join(self._private, _SCRATCH)) as distinct:
            links = self._distinct_links(distinct)
            for _ in islice(links, sum(part.rows for part in state.parts)):
                pass
            while (first := next(links, None)) is not None:
                self._publish_part(chain([first], islice(links, _PART_ROWS - 1)))
            self._write_failures()
            self.write_manifest(complete=True)
            self._public.replace(SUCCESS, [])

    def write_manifest(self, stop: Stop | None = None, *, complete: bool = False) -> None:
        """Replace the manifest. stop: why the command ends before the last page. Raises OutputError."""
        state = self.journal.state
        content: dict[str, Any] = {
            "schema_version": 1,
            "tool": f"harvester {__version__}",
            "rows": "links",
            "run_id": state.id,
            "list": self._request.as_dict(),
            "groups": state.groups,
            "format": self._format,
            "started": state.started,
            "updated": utc_iso(datetime.now(UTC)),
            "read": state.ended,
            "complete": complete,
            "stopped": stop and {"reason": stop.reason, "message": stop.message, "until": stop.until},
            "pages": state.pages,
            "links": state.links,
            "invalid": state.bad,
            "parts": [part._asdict() for part in state.parts],
        }
        with as_output_error(self._public.path(MANIFEST)):
            self._public.replace(MANIFEST, [as_json(content, orjson.OPT_INDENT_2).encode() + b"\n"])

    def _distinct_links(self, distinct: DistinctKeys) -> Iterator[GroupLink]:
        """Yield each link once, also if pages overlap."""
        for links, _ in self.journal.pages():
            by_key: dict[bytes, GroupLink] = {}
            for link in links:
                by_key.setdefault(f"{link.group} {link.id}".encode(), link)
            for key in distinct.add(list(by_key)):
                yield by_key[key]

    def _publish_part(self, links: Iterator[GroupLink]) -> None:
        state = self.journal.state
        name = f"part-{state.id}-{len(state.parts):05}.{self._format}"
        hidden = self._hidden(name)
        with open_new(hidden) as stream:
            writer = HashingWriter(stream)
            rows = write_rows(links, writer, self._format)
            stream.flush()
            sync_file(stream.fileno())
        part = PartIntent(name, rows, writer.size, writer.sha256)
        self.journal.add_part(part)
        self._recover(part)

    def _recover(self, part: PartIntent) -> None:
        """Bring a part that the journal names to its place."""
        with as_output_error(self._public.path(part.path)):
            found = self._public.digest(part.path)
            if found is not None and found != (part.bytes, part.sha256):
                raise OutputError(f"{self._public.path(part.path)} is not what was written there: move it away")
            if found is None and os.path.exists(self._hidden(part.path)):
                self._public.create_from_file(part.path, self._hidden(part.path))

    def _hidden(self, name: str) -> str:
        return self._public.path(f".{name}.tmp")

    def _write_failures(self) -> None:
        lines = (
            one_line({"bitlink": None, "text": bad.text, "kind": "invalid", "message": bad.reason}) + b"\n"
            for _, each in self.journal.pages()
            for bad in each
        )
        if self.journal.state.bad:
            self._public.replace(FAILURES, lines)


@contextmanager
def opened(
    out: str, work_dir: str | None, request: ListRequest, format_: LinksFormat, new_id: str
) -> Iterator[LinksOutput]:
    """Open a folder for the table of links, under a lock, and begin or resume it. new_id: for a new one.

    Raises:
        UsageError: it is no folder, holds something else, or was begun for other links. DatasetBusy: another process
        has it open. OutputError: it is damaged, or cannot be written.
    """
    if "{" in out:
        raise UsageError(f"{out}: the table of links has no facet and no day to fill in", option="--out")
    location = resolve(out, work_dir)
    if location.kind is not OutputKind.FOLDER:
        raise UsageError(f"{out}: must be a folder on a local disk", option="--out")
    folder, path = location.out, os.path.join(location.private, JOURNAL)
    if has_ledger(location):
        raise UsageError(f"{folder} is the output of `harvester run`: use another --out", option="--out")
    with as_output_error(folder):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        if not os.path.exists(path) and any(name == MANIFEST or name.startswith("part-") for name in names):
            raise OutputError(f"{folder} was started before, and {path} is missing: restore it, or use another --out")
        make_folder(folder)
        make_folder(location.private)
    with ExitStack() as stack:
        with as_output_error(location.private):
            stack.enter_context(FolderLock(location.private, folder))
        journal = PageJournal(path)
        stack.callback(journal.close)
        journal.open(request, new_id, utc_iso(datetime.now(UTC)))
        existing = {part.path.partition(".")[2] for part in journal.state.parts}
        if existing - {format_}:
            raise UsageError(f"{folder} was started with --format {existing.pop()}: use another --out")
        with suppress(OSError):
            os.unlink(os.path.join(location.private, _SCRATCH))
        yield LinksOutput(folder, location.private, journal, request, format_)
