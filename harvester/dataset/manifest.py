"""The manifest `_manifest.json`: its typed form, written by a run and read by every command that looks at an output.

A dataclass is one JSON object: its fields are the keys, in this order. `parse` accepts more keys than these, and a
missing key only where its field has a default. All numbers are counts, and none of them is negative.
"""

import errno
import os
import stat
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, cast

import orjson

from harvester.errors import OutputError, UsageError
from harvester.history import HistoryEntry, RunEntry, history_to_json, with_limits
from harvester.jsonlines import Misfit, from_json
from harvester.progress import AttemptCounts, ListCounts, RefreshCounts
from harvester.storage.location import (
    BESIDE,
    GROWING_ENDINGS,
    MANIFEST,
    STDOUT,
    followed,
    is_growing_file,
    is_url,
    normal,
)
from harvester.storage.object_store import open_store

NEWEST = 1
"""The newest schema_version that this version reads."""
WINDOW_CHECK = "window_check"
"""The ledger's fact with the check of the window, as JSON."""
_MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a run ended before its list did. reason: a StopReason, or one of a later version. until: UTC, or None."""

    reason: str
    message: str
    until: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """Verdicts, and the seconds in which they came: at most the hour before the manifest was written."""

    calls: int
    seconds: float

    @property
    def per_hour(self) -> float | None:
        """Calls an hour; None before any time has passed."""
        return self.calls * 3600 / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Command:
    """The command that was run. words: as they were typed; `…` stands for what may be a secret. cwd: its folder.

    config: the absolute paths of the files of options. variables: those that options came from, by name; None stands
    for a value that may hold a secret.
    """

    words: tuple[str, ...]
    cwd: str | None
    config: tuple[str, ...]
    variables: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Invocation:
    """The present run. number: among the dataset's runs, from 1. lists: as the command named them. calls: verdicts.

    command: None for a run that was begun from Python.
    """

    number: int
    started: str
    command: Command | None
    lists: tuple[str, ...]
    calls: int
    last_verdict: str | None
    rate: Rate


@dataclass(frozen=True, slots=True)
class LimitedBy:
    """The limit that blocks sending. limit: attempts it allows, None if it is not a count. until: UTC, or None.

    since: when it began to block, UTC, or None where calls only follow a pace. why: how the latest attempts failed
    during an outage, or which processes hold the connections; or None.
    """

    window: str
    limit: int | None
    until: str | None
    since: str | None
    why: str | None


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """One of the budget's windows, in attempts. limit, remaining: None without a limit. until: UTC, or None."""

    window: str
    limit: int | None
    used: int
    remaining: int | None
    until: str | None
    source: str


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """The budget of the run's endpoint. account: as --account named it, or the token's fingerprint."""

    account: str
    token: str
    limited_by: LimitedBy | None
    windows: tuple[WindowUsage, ...]

    @property
    def account_option(self) -> str | None:
        """The value of --account; None where the run had none."""
        return self.account if self.account != self.token else None


@dataclass(frozen=True, slots=True)
class DatasetCounts:
    """The dataset's calls by state: calls = rows + refused + failed + pending.

    truncated, clipped, idle: the rows with each mark of rows.call.Shortfall. refreshed: rows beside these, published
    too, that a newer verdict on their call has followed (--refresh).
    """

    calls: int
    rows: int
    refused: int
    failed: int
    pending: int
    truncated: int
    clipped: int
    idle: int = 0
    refreshed: int = 0

    @property
    def settled(self) -> int:
        """Calls that are never made again: those with a row, and those that Bitly refused."""
        return self.rows + self.refused


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """A published file of rows. calls: whose rows it has. sha256: None for a file that grows."""

    path: str
    rows: int
    calls: int
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class WindowCheck:
    """The check that Bitly's window is the period asked for: the buckets that a series answer named, newest first.

    link: the bitlink that was asked for; None where the answers to up to three said nothing. ok: None if that left it
    open.
    """

    unit: str
    unit_reference: str
    link: str | None
    buckets: tuple[str, ...]
    ok: bool | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run contributes to the manifest.

    complete: the whole list was read and every call is settled. stopped: None for a run that goes on or that reached
    the list's end. list: None before the list was read to its end. ended: UTC, None while the run goes on. remaining:
    calls of the list without a verdict, or None. given_up: calls that have failed too often to be repeated. pending:
    calls taken from the list that have no verdict of any run; in the manifest they stand in `dataset`. window_check:
    None before it was checked, and for a window that is no period. refresh: None without --refresh. runs, history: what
    all runs of the dataset did, by number and by time.
    """

    complete: bool
    stopped: Stopped | None
    input_read_to_end: bool
    list: ListCounts | None
    ended: str | None
    invocation: Invocation
    remaining: int | None
    given_up: int
    budget: BudgetReport
    pending: int
    window_check: WindowCheck | None = None
    refresh: RefreshCounts | None = None
    runs: tuple[RunEntry, ...] = ()
    history: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `_manifest.json`. All moments are UTC as text. For the fields of a run see RunReport.

    server: the host whose answers the rows are. query: unchecked, so that `verify` can name what is wrong in it.
    work_dir: None where the private state lies in or beside the output. attempts: of all runs.
    """

    schema_version: int
    tool: str
    run_id: str
    server: str
    work_dir: str | None
    query: dict[str, Any]
    format: str
    shape: str
    started: str
    updated: str
    complete: bool
    stopped: Stopped | None
    input_read_to_end: bool
    list: ListCounts | None
    ended: str | None
    invocation: Invocation
    remaining: int | None
    given_up: int
    budget: BudgetReport
    dataset: DatasetCounts
    attempts: AttemptCounts
    parts: tuple[PublishedPart, ...]
    window_check: WindowCheck | None = None
    refresh: RefreshCounts | None = None
    runs: tuple[RunEntry, ...] = ()
    history: tuple[HistoryEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, its keys in the order of the file."""
        runs = [run.to_json() for run in self.runs]
        return {**asdict(replace(self, runs=(), history=())), "runs": runs, "history": history_to_json(self.history)}


class NewerForm(UsageError):
    """The manifest was written by a newer version, in a form that this one does not know."""


class TableOfLinks(UsageError):
    """The manifest is that of a table of links, which has no rows of metrics."""


class Found(NamedTuple):
    """A manifest that was read. out: the output that it belongs to. path: its own."""

    out: str
    path: str
    content: Manifest


def read(out: str) -> Found:
    """Read the manifest of an output. out: its folder, its growing file, or the manifest itself.

    Raises:
        UsageError: there is none, it cannot be read, or it is not a manifest of a known form.
    """
    if is_url(out):
        out = normal(out.removesuffix("/" + MANIFEST))
        path, text = f"{out}/{MANIFEST}", _text_in_store(out)
    else:
        path, out = locate(out)
        text = _text_of(path, out)
    return Found(out, path, parse(text, path))


def parse(text: bytes, path: str) -> Manifest:
    """Return the manifest that a file's bytes hold. path: the file's name in messages.

    Raises:
        NewerForm: a newer version wrote it. UsageError: it is not a manifest.
    """
    try:
        content: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON ({error}); it is incomplete, or not a harvester manifest") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > NEWEST:
        raise NewerForm(
            f"{path}: written by {content.get('tool')}, in a newer format than this harvester knows: update it"
        )
    if isinstance(content, dict) and content.get("rows") == "links":
        raise TableOfLinks(
            f"{path}: describes a table of links, not a run; the same `harvester links` command checks it"
        )
    if isinstance(content, dict):
        with_limits(content.get("history"))
    try:
        return cast("Manifest", from_json(Manifest, content))
    except Misfit as error:
        raise UsageError(f"{path}: not a harvester manifest ({error})") from error


def locate(out: str) -> tuple[str, str]:
    """Return the paths of the manifest and of the output. out: as for `read`.

    Raises:
        UsageError: rows on standard output have no manifest.
    """
    if out == "-":
        raise UsageError("rows on standard output have no manifest: name a folder or a file")
    out = os.path.abspath(out)
    if os.path.basename(out) == MANIFEST:
        path = out
    elif is_growing_file(out):
        path = os.path.join(followed(out) + BESIDE, MANIFEST)
    else:
        path = os.path.join(out, MANIFEST)
    folder = os.path.dirname(path)
    growing = folder.removesuffix(BESIDE)
    return path, growing if folder != growing and growing.lower().endswith(GROWING_ENDINGS) else folder


def below(out: str) -> list[str]:
    """Return the paths of the manifests in a folder and the folders below it; none if it is an output itself.

    Nothing is looked for inside an output, nor in folders whose name begins with a dot or an underscore.
    """
    if out == STDOUT or is_url(out) or os.path.exists(locate(out)[0]):
        return []
    found = []
    for folder, folders, names in os.walk(out):
        if is_output := MANIFEST in names:
            found.append(os.path.join(folder, MANIFEST))
        folders[:] = [name for name in folders if not (is_output or name.startswith((".", "_")))]
    return sorted(found)


def _text_in_store(url: str) -> bytes:
    try:
        text = open_store(url).get(MANIFEST)
    except OutputError as error:
        raise UsageError(str(error)) from error
    if text is not None:
        return text
    raise UsageError(f"no run has started at {url}: {url}/{MANIFEST} does not exist")


def _text_of(path: str, out: str) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO of that name must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: not a file")
            return stream.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no run has started at {out}: {path} does not exist") from error
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced meanwhile, on a network file system
            return _text_of(path, out)
        raise UsageError(f"{path}: {error.strerror}") from error
