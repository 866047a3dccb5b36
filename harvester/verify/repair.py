"""`harvester repair`: rebuild a dataset's ledger from rows, journals, failures, manifest, and what is left of the old.

A ledger is built anew each time, and compared: where the present one is whole and knows every part and row, nothing is
to be repaired. Only `apply` changes anything, and it sets the old ledger aside.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any, BinaryIO

import orjson

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query
from harvester.dataset import manifest as manifests
from harvester.dataset.journal import good_lines, segment_path, segments
from harvester.dataset.ledger import ASKED, REFRESHING, Ledger, Part
from harvester.dataset.manifest import Manifest, PublishedPart
from harvester.dataset.part_publisher import PART_NAME
from harvester.errors import OutputError, UsageError, as_output_error
from harvester.history import Recorded
from harvester.jsonlines import object_in, whole_lines
from harvester.progress import AttemptCounts
from harvester.rows.call import CallState, Entry
from harvester.rows.decode import HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format, PartFormat
from harvester.rows.schema import Shape
from harvester.storage.filesystem import install, make_folder
from harvester.storage.folders import refuse_second_work_dir, resolve
from harvester.storage.location import CLAIM, FAILURES, MANIFEST, STDOUT, OutputLocation
from harvester.storage.object_store import open_store
from harvester.storage.scratch import scratch_folder
from harvester.storage.storage import LocalStorage, Storage
from harvester.storage.watch import FolderLock, check_kinds, check_state
from harvester.verify.rebuilding import Origin, Rebuilding, Remains, Tally, remains, window_facts

_REBUILT = "ledger.sqlite.rebuilt"


@dataclass(slots=True)
class Repair:
    """The result, whose fields are the keys of the JSON object. whole: nothing is to be repaired. ledger: what is wrong
    with it. losses: what no source has, whose calls would be asked for again. set_aside: the old ledger's new name.
    """

    out: str
    whole: bool = False
    applied: bool = False
    ledger: str = ""
    losses: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    set_aside: str | None = None
    rebuilt: Tally = field(default_factory=Tally)

    @property
    def ok(self) -> bool:
        """True if the same `harvester run` goes on."""
        return self.whole or self.applied


def repair(out: str, work_dir: str | None, parts_at: str | None, *, apply: bool, ask_again: bool) -> Repair:
    """Rebuild the ledger of an output, and put it in place if `apply`.

    parts_at: a folder to which a loader has moved parts. ask_again: apply even if some calls are to be made again; if
    the ledger is whole, forget the calls of the parts that are gone, so that the next run makes them again.

    Raises:
        UsageError: there is no output of harvester's, or it is standard output. DatasetBusy: a run goes on.
        OutputError: a file cannot be read or written.
    """
    if out == STDOUT:
        raise UsageError("rows on standard output leave nothing to repair: name a folder, a file or a store")
    location = resolve(out, work_dir)
    refuse_second_work_dir(location)
    with ExitStack() as stack, as_output_error(location.out):
        if location.begun:
            stack.enter_context(FolderLock(location.private, location.out))
        check_kinds(location)
        return _Repairing(location, parts_at, stack).run(apply=apply, ask_again=ask_again)


class _Repairing:
    def __init__(self, location: OutputLocation, parts_at: str | None, stack: ExitStack) -> None:
        self._location = location
        self._stack = stack
        self._found = Repair(location.out)
        self._sidecar_storage: Storage = (
            open_store(location.out) if location.in_store else LocalStorage(location.public)
        )
        self._storages = [self._sidecar_storage, *([LocalStorage(parts_at)] if parts_at else [])]
        # A copy, because even reading leaves a write-ahead log beside a ledger, and nothing is to be changed.
        self._folder = stack.enter_context(scratch_folder(None))
        self._copy = os.path.join(self._folder, "ledger.sqlite")
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError, NotADirectoryError):
                shutil.copyfile(location.ledger + ending, self._copy + ending)
        self._remains = remains(self._copy)
        self._manifest = self._read_manifest()
        kept = self._remains.facts.get(REFRESHING)
        self._refreshing = bool(kept) if self._manifest is None else self._manifest.refresh is not None

    def run(self, *, apply: bool, ask_again: bool) -> Repair:
        found, location = self._found, self._location
        origin = self._origin()
        if self._remains.facts.get("run_id") != origin.run_id:
            self._remains = Remains({}, [], [], "")  # begun by mistake, beside what is lost
        present = self._present_ledger()
        if apply and not location.begun:
            make_folder(location.public)
            make_folder(location.private)
            self._stack.enter_context(FolderLock(location.private, location.out))
        if apply:
            check_state(location, found.remarks.append)
        path = os.path.join(location.private if apply else self._folder, _REBUILT)
        work = self._rebuilt(path, origin, present)
        self._judge(origin, present)
        if found.whole and ask_again and work.tally.moved_calls:
            found.whole = False
            work = self._rebuilt(path, origin, present, forget_moved=True)
            lost = work.tally
            found.ledger = "is whole, but parts are gone whose links it would not ask for again"
            found.losses.append(
                f"{lost.lost_calls:,} calls of {', '.join(lost.lost_parts)}: the next run makes them again"
            )
        if apply and not found.whole and (ask_again or not found.losses):
            work.blank_published_rows()
            found.set_aside = install(location.ledger, path)
            found.applied = True
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
        return found

    def _rebuilt(self, path: str, origin: Origin, present: Ledger | None, *, forget_moved: bool = False) -> Rebuilding:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with closing(Ledger(path)) as ledger:
            ledger.create(self._facts(origin))
            if self._refreshing:
                ledger.begin_refreshing(0)
            work = Rebuilding(
                ledger, origin.query, origin.run_id, origin.part_format, origin.invocation, self._private()
            )
            self._fill(work, present, forget_moved=forget_moved)
        self._found.rebuilt = work.tally
        return work

    def _private(self) -> str:
        return self._location.private if self._location.begun else self._folder

    # --- the sources -----------------------------------------------------------------------------------------------

    def _read_manifest(self) -> Manifest | None:
        try:
            text = self._sidecar_storage.get(MANIFEST)
            return manifests.parse(text, self._sidecar_storage.path(MANIFEST)) if text is not None else None
        except manifests.NewerForm:
            raise
        except (UsageError, NotADirectoryError) as error:
            self._found.remarks.append(str(error))
            return None

    def _present_ledger(self) -> Ledger | None:
        """Open the present ledger for reading; None if it is gone, empty or damaged, as the result says."""
        if not os.path.exists(self._copy):
            self._found.ledger = "is gone"
            return None
        try:
            ledger = Ledger(self._copy, read_only=True)
            self._stack.callback(ledger.close)
            if not ledger.fresh:
                ledger.check()
                return ledger
            self._found.ledger = "is empty"
        except OutputError as error:
            self._found.ledger = (
                str(error).removeprefix(f"{self._copy}: ").removeprefix("the ledger ").partition(". ")[0]
            )
        return None

    def _origin(self) -> Origin:
        """Return what the dataset was begun with: by its manifest, its old ledger, or its first row.

        Raises:
            UsageError: none of them has it.
        """
        manifest, facts = self._manifest, self._remains.facts
        kept = facts.get("invocation")
        number = max(manifest.invocation.number if manifest else 1, kept if type(kept) is int else 1)
        with suppress(KeyError, TypeError, ValueError):
            if manifest is not None:
                query = Query(**manifest.query)
                part_format = PartFormat(Format(manifest.format), Shape(manifest.shape), query.facet)
                return Origin(manifest.run_id, query, part_format, manifest.started, number, manifest.server)
        with suppress(KeyError, TypeError, ValueError):
            query = Query(**orjson.loads(str(facts["query"])))
            part_format = PartFormat(Format(str(facts["format"])), Shape(str(facts["shape"])), query.facet)
            run_id, started, server = (str(facts[name]) for name in ("run_id", "started", "server"))
            return Origin(run_id, query, part_format, started, number, server)
        for form, shape, row in self._first_rows():
            with suppress(KeyError, TypeError):
                query = Query(**{field.name: row[field.name] for field in fields(Query)})
                part_format = PartFormat(form, shape, query.facet)
                return Origin(row["run_id"], query, part_format, row["fetched_at"], number)
        state = self._location.private
        begin = f". If not, remove {state} and run the same command again" if os.path.isdir(state) else ""
        raise UsageError(
            f"nothing to repair at {self._location.out}: it has no manifest, no ledger and no rows of "
            f"harvester's (was there a --work-dir?){begin}"
        )

    def _first_rows(self) -> Iterator[tuple[Format, Shape, dict[str, Any]]]:
        """Yield a row of each published file, and of each journal."""
        if not self._location.in_parts:
            lines = whole_lines(self._location.out, 0)
            yield from ((Format.NDJSON, Shape.NESTED, object_in(line)) for _, line in lines)
        for name in self._part_names():
            form = Format(PART_NAME.fullmatch(name)["format"])  # type: ignore[index]
            for candidate in map(PartFormat._make, product([form], Shape, FACETS)):
                with suppress(UnreadableFile, StopIteration), closing(self._sidecar_storage.open(name)) as stream:
                    row = next(row for _, row in rows_of(HashingReader(stream), candidate))
                    yield form, Shape.FLAT if "call_id" in row else Shape.NESTED, row
                    break
        for segment in segments(self._location.private) if self._location.begun else ():
            rows = (r for _, r in good_lines(segment_path(self._location.private, segment)) if r.state == CallState.ROW)
            if record := next(rows, None):
                form = Format.NDJSON_GZ if self._location.in_parts else Format.NDJSON
                yield form, Shape.NESTED, object_in(record.payload)

    def _part_names(self) -> list[str]:
        if not self._location.in_parts:
            return []
        try:
            return [name for name in self._sidecar_storage.names() if PART_NAME.fullmatch(name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _facts(self, origin: Origin) -> dict[str, str | int]:
        facts: dict[str, str | int] = {
            "run_id": origin.run_id,
            "query": orjson.dumps(origin.query.as_dict()).decode(),
            "started": origin.started,
            "out": self._location.name,
            "format": origin.part_format.format,
            "shape": origin.part_format.shape,
            "invocation": origin.invocation,
        }
        facts |= {"server": origin.server} if origin.server else {}
        if self._refreshing and (asked := self._remains.facts.get(ASKED)):
            facts[ASKED] = asked
        old = {name: value for name, value in self._remains.facts.items() if type(value) is int}
        facts |= window_facts(self._manifest, self._remains.facts, origin.query, self._found.remarks)
        counted = asdict(self._manifest.attempts) if self._manifest else asdict(AttemptCounts())
        facts |= {name: max(count, int(old.get(name, 0))) for name, count in counted.items()}
        if self._location.in_store:
            claim = object_in(self._sidecar_storage.get(CLAIM))
            secret = self._remains.facts.get("claim")
            if secret is None and claim.get("run_id") == origin.run_id:
                secret = claim.get("claim")
                owner = " ".join(f"{name} {claim.get(name, 'unknown')}" for name in ("host", "work_dir", "made"))
                self._found.remarks.append(
                    f"{self._location.out} is claimed by another work dir ({owner}), which is taken for lost: make "
                    "sure that no run uses it"
                )
            if isinstance(secret, str):
                facts["claim"] = secret
        return facts

    # --- rebuilding ------------------------------------------------------------------------------------------------

    def _fill(self, work: Rebuilding, present: Ledger | None, *, forget_moved: bool) -> None:
        def settled_before(rows: list[Entry]) -> int:
            known = present.known([row.key for row in rows]) if present else {}
            found = [(row, known[row.key]) for row in rows if row.key in known]
            if self._refreshing:  # a failure may have followed the row
                return sum(
                    has.state is not CallState.ROW or (has.asked_at or 0) >= (row.asked_at or 0) for row, has in found
                )
            return sum(has.state is CallState.ROW for _, has in found)

        if self._location.in_parts:
            listed, keys_of = self._listed(work.run_id), self._calls_by_old_ledger
            work.take_parts(listed, self._open, keys_of, settled_before, forget_moved=forget_moved)
        else:
            work.take_growing_file(self._location.out, settled_before)
        work.take_recent_failures()
        work.take_failures(self._remains.failures)
        with suppress(FileNotFoundError, NotADirectoryError), closing(self._sidecar_storage.open(FAILURES)) as stream:
            work.take_failures(stream)
        work.take_failed_runs(self._remains.failed_runs())
        written = [Recorded(self._manifest.history, self._manifest.runs)] if self._manifest else []
        work.take_history([self._remains.history, *written])
        work.look_at_journals()

    def _listed(self, run_id: str) -> dict[str, PublishedPart]:
        """Return all parts of this run that are there, or that manifest or ledger know."""
        there = {name: PublishedPart(name, 0, 0, 0) for name in self._part_names()}
        old = {p.name: PublishedPart(p.name, p.rows, p.calls, p.bytes, p.sha256) for p in self._old_parts()}
        listed = {part.path: part for part in (self._manifest.parts if self._manifest else ())}
        return {
            name: part
            for name, part in {**there, **old, **listed}.items()
            if (match := PART_NAME.fullmatch(name)) and match["run_id"] == run_id
        }

    def _old_parts(self) -> list[Part]:
        kinds = (int, int, str, int, int, str, int, int)
        return [
            part
            for part in self._remains.parts
            # An intent whose file is neither hidden nor published was published, and has been moved away.
            if tuple(map(type, part)) == kinds and (part.sealed or not (self._location.in_store or self._hidden(part)))
        ]

    def _hidden(self, part: Part) -> bool:
        match = PART_NAME.fullmatch(part.name)
        name = f".part-{match['run_id']}-{part.number:05d}.tmp" if match else ""
        return os.path.exists(os.path.join(self._location.public, name))

    def _open(self, name: str) -> BinaryIO | None:
        for shelf in self._storages:
            with suppress(FileNotFoundError, NotADirectoryError):
                return shelf.open(name)
        return None

    def _calls_by_old_ledger(self, name: str) -> list[bytes] | None:
        for part in self._old_parts():
            if part.name == name and (
                len(keys := self._remains.calls_of(part.segment)) >= part.calls or self._refreshing
            ):
                return keys
        return None

    # --- the judgement ---------------------------------------------------------------------------------------------

    def _judge(self, origin: Origin, present: Ledger | None) -> None:
        """Record what is wrong with the present ledger, and what a rebuilt one would lack."""
        found, tally = self._found, self._found.rebuilt
        if present is not None:
            known = {part.name for part in present.parts()}
            unknown = sorted(set(self._listed(origin.run_id)) - known)
            if present.facts().get("run_id") != origin.run_id:
                found.ledger = "belongs to another run than the rows"
            elif unknown:
                found.ledger = f"is older than its output: it lacks {', '.join(unknown)}"
            elif tally.unknown_to_ledger:
                found.ledger = f"is older than its output: it lacks {tally.unknown_to_ledger} calls with a row"
            elif not self._location.in_parts and (missing := self._cut_off(present)) > 0:
                found.ledger = f"counts rows that {self._location.out} no longer has"
                found.losses.append(f"{missing:,} calls whose rows are gone from {self._location.out}: restore it")
        found.whole = not found.ledger
        if found.whole:
            return
        found.losses += tally.unreadable
        if tally.lost_parts:
            found.losses.append(
                f"{tally.lost_calls:,} calls of {', '.join(tally.lost_parts)}, moved away since: name the folder that "
                "has them now with --parts"
            )
        counts = self._manifest.dataset if self._manifest else None
        if counts and (missing := counts.rows - tally.row_calls - tally.lost_calls) > 0 and not found.losses:
            found.losses.append(
                f"{missing:,} calls that the manifest counts with a row: a journal or a part is missing"
            )
        if counts and (missing := counts.refused - tally.refused) > 0:
            found.losses.append(f"{missing:,} refusals that the manifest counts: {FAILURES} is missing, or older")

    def _cut_off(self, present: Ledger) -> int:
        """Return how many rows were cut off the growing file and are in no journal; with those a run completes it."""
        tally = self._found.rebuilt
        return (tally.file_bytes < present.checkpoint().bytes) * (present.totals().rows - tally.row_calls)
