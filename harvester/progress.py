"""The progress of a run, from which manifest, progress line and summary are made; and its words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeAlias


class WindowState(NamedTuple):
    """The use of one of the budget's windows, in attempts. limit: 0 for none. until: when the window has room again, or
    when the month ends; None while there is room.

    source: where the limit comes from: `asked`, `default`, `bitly` or `throttled`.
    """

    window: str
    limit: int
    used: int
    until: datetime | None
    source: str

    @property
    def remaining(self) -> int | None:
        """Attempts that may still be sent; None without a limit."""
        return max(self.limit - self.used, 0) if self.limit else None


_SOURCES = {"asked": "", "default": "default", "bitly": "from Bitly", "throttled": "lowered after throttling"}


def window_in_words(state: WindowState) -> str:
    """Return a window's limit, where it comes from and its use: `1,000 an hour (default, 7 used)`."""
    article = "an" if state.window == "hour" else "a"
    limit = f"{state.limit:,} {article} {state.window}" if state.limit else f"no limit {article} {state.window}"
    remarks = [_SOURCES[state.source] if state.limit else "", f"{state.used:,} used" if state.used else ""]
    remark = ", ".join(filter(None, remarks))
    return f"{limit} ({remark})" if remark else limit


Carried: TypeAlias = Mapping[str, str | None] | None
"""What a list says of a link in the columns that --carry names, by their names; None if it names none."""


@dataclass(slots=True)
class AttemptCounts:
    """Attempts for metrics: all, the retries among them, and those that Bitly throttled.

    helper: helper requests, which ask for Bitly's own limits, for groups, their links and their exports; they count
    against the month too.
    """

    total: int = 0
    retried: int = 0
    throttled: int = 0
    helper: int = 0

    @classmethod
    def among(cls, facts: Mapping[str, str | int]) -> "AttemptCounts":
        """Return the counts that stand among a ledger's facts, by their names; 0 for one that is missing."""
        return cls(**{counter.name: int(facts.get(counter.name, 0)) for counter in fields(cls)})


class WaitReason(NamedTuple):
    """The limit that currently blocks sending. limit: attempts it allows; 0 if it is not a count. until: UTC.

    why: how the latest attempts failed, during an outage or before a pause that the server asked for; or which
    processes hold the connections.
    """

    window: str
    limit: int
    until: datetime | None
    why: str = ""


@dataclass(slots=True)
class ListCounts:
    """Lines of the present list: lines = blank + comments + headers + invalid + duplicates + links.

    differing: the duplicates that have other values to carry than the first line of their link.
    """

    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0
    differing: int = 0


@dataclass(slots=True)
class RefreshCounts:
    """The links of the list by the age of their answers, where rows are refreshed.

    seconds: the age from which on a link is due, None in a run without --refresh. never: links without an answer yet.
    oldest: the end of the oldest answer's window, UTC. They are None while the list was not read to its end.
    """

    seconds: float | None
    never: int | None = None
    fresh: int | None = None
    due: int | None = None
    oldest: str | None = None


class CallHistory(Protocol):
    """What a call's past says of its end."""

    @property
    def previous(self) -> object:
        """Its state, if an earlier run has made the call; else None."""

    @property
    def is_last_try(self) -> bool:
        """True if the call is not made again, should it fail now."""

    @property
    def is_due(self) -> bool:
        """True if the link had an answer, which is old."""


class InvalidLine(NamedTuple):
    """A line that is no bitlink: its text (cut at 2,000 characters), why, and where it stands."""

    text: str
    reason: str
    file: str
    line: int


WAIT_REASONS = {
    "pace": "the next call's turn",
    "minute": "the minute's limit",
    "hour": "the hour's limit",
    "month": "the turn of the month",
    "throttled": "Bitly to stop throttling",
    "outage": "the server to answer again",
    "budget": "the budget file, which another process has locked",
    "redis": "the shared budget in Redis",
    "connections": "a connection: other harvesters use them all",
    "retry_after": "the end of the pause that the server asked for (Retry-After)",
    "list": "the next line of the list",
    "reader": "the reader of standard output, which takes no more rows",
}
"""The limits that may block sending, by their names in WaitReason and in the manifest."""


def limit_in_words(window: str, limit: int | None) -> str:
    """Return what blocks sending in words: `the hour's limit of 1,000`. limit: attempts; 0 or None if not a count."""
    text = WAIT_REASONS.get(window, window)
    if window == "pace" and limit:
        return f"{text} ({limit:,} a minute)"
    return f"{text} of {limit:,}" if limit else text


def shortfalls_in_words(rows: int, truncated: int, clipped: int) -> list[str]:
    """Return what rows lack, and what to do: a sentence each on those truncated and those clipped, if there are any."""
    sentences, of_rows = [], f"of {rows:,} {'row is' if rows == 1 else 'rows are'}"
    if truncated:
        why = "Bitly returned as many metrics as were requested"
        todo = "a larger --size or --max-size, with a new --out, fetches the rest"
        sentences.append(f"{truncated:,} {of_rows} truncated ({why}): {todo}")
    if clipped:
        why = "the account's plan keeps a shorter history than was requested"
        sentences.append(f"{clipped:,} {of_rows} clipped ({why}): only a larger plan keeps the rest")
    return sentences


def idle_in_words(rows: int, idle: int) -> str:
    """Return how many rows no call was made for."""
    return f"{idle:,} of {rows:,} rows without a call: exports of the group state that the links have no clicks"


def ages_in_words(ages: RefreshCounts, now: datetime) -> str:
    """Return the links by the age of their answers in words; their numbers must be known."""
    text = f"{ages.never or 0:,} never answered, {ages.fresh or 0:,} fresh, {ages.due or 0:,} due"
    if ages.oldest is None:
        return text
    age = (now - datetime.fromisoformat(ages.oldest)).total_seconds()
    return f"{text}; the oldest answer is {duration(max(age, 0.0))} old"


def counted(number: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def duration(seconds: float) -> str:
    """Return a time in words, in its two largest units unless the second is zero: `3.2 s`, `4 min 10 s`, `2 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + f" {rest} s" * bool(rest)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + f" {minutes} min" * bool(minutes)
    return f"{hours // 24} days" + f" {hours % 24} h" * bool(hours % 24)


@dataclass(slots=True)
class RunProgress:
    """The progress of one run, updated in place in the event loop.

    started: calls handed to workers. known: links that needed no call; given_up: those among them that have failed too
    often. exhausted: calls that have failed in this run, and now too often to be made again without --retry-failed.
    column: the one in which links were looked for, in the last table of the lists.
    pending: calls taken from the list and without a verdict; repeated: those among them that an earlier run has made,
    and that the dataset counts as failed or refused. truncated, clipped: rows that lack some of their metrics,
    or a part of their time (rows.call.Shortfall); idle: rows that no call was made for. Among attempts.helper: exports,
    the requests that told which; listing, those for the groups' links. waiting: the limit that blocks sending now.
    trouble: how the last attempt failed, if the failure was transient. not_sent: attempts that did not reach the
    server, at the end. connecting: those among `attempts` that have no connection yet.

    outputs: those of the command, each of which needs the list's calls, where this is the progress of all.
    to_make: calls that the list needs, None if it was not counted first. max_calls: the most calls that this run may
    make, None without a limit.
    refresh: the links by the age of their answers as this run found them, None without --refresh; first, refreshed:
    calls for the first time, and others, that have an answer since.
    refused_by: this run's refusals by HTTP status. invalid_before, spent_before: what earlier runs of this output have
    reported of it: invalid lines in the list, and the end of a month (`2026-12-01T00:00:00Z`) whose calls were used up.
    per_second: calls finished in each of the last seconds, at most 60, the latest last. ends: estimate of when all
    calls are finished; spent: when the month will be spent, if that is earlier.
    """

    listed: ListCounts = field(default_factory=ListCounts)
    column: str = ""
    read_to_end: bool = False
    started: int = 0
    rows: int = 0
    refused: int = 0
    failed: int = 0
    truncated: int = 0
    clipped: int = 0
    idle: int = 0
    exports: int = 0
    listing: int = 0
    known: int = 0
    given_up: int = 0
    exhausted: int = 0
    pending: int = 0
    repeated: int = 0
    waiting: WaitReason | None = None
    trouble: str | None = None
    attempts: AttemptCounts = field(default_factory=AttemptCounts)
    not_sent: int = 0
    connecting: int = 0
    outputs: int = 1
    to_make: int | None = None
    max_calls: int | None = None
    windows: Sequence[WindowState] = ()
    per_second: Sequence[float] = ()
    ends: datetime | None = None
    spent: datetime | None = None
    refresh: RefreshCounts | None = None
    first: int = 0
    refreshed: int = 0
    refused_by: Counter[int | None] = field(default_factory=Counter)
    invalid_before: int = 0
    spent_before: str = ""

    @property
    def likely_end(self) -> datetime | None:
        """The estimate of the end; None for one that is over, or that comes before the end of the present wait."""
        earliest = datetime.now(UTC)
        if self.waiting and self.waiting.until:
            earliest = max(earliest, self.waiting.until)
        return self.ends if self.ends and self.ends >= earliest else None

    def count_row(self, call: CallHistory, *, truncated: bool, clipped: bool) -> None:
        """Count a call that has its row."""
        self.pending -= 1
        self.rows += 1
        if call.previous is not None:
            self.repeated -= 1
        if self.refresh is not None:
            self._count_answer(call)
        if truncated or clipped:
            self.truncated += truncated
            self.clipped += clipped

    def count_idle(self, call: CallHistory) -> None:
        """Count a link that has its row without a call. One that is due was counted as pending, others were not yet."""
        self.pending -= call.is_due
        self.repeated -= call.is_due
        self.rows += 1
        self.idle += 1
        self._count_answer(call)

    def count_without_row(self, status: int | None, call: CallHistory, *, refused: bool) -> None:
        """Count a call that ended without a row. status: HTTP's, None where no answer came."""
        self.pending -= 1
        self.repeated -= call.previous is not None
        self.refused += refused
        self.failed += not refused
        if refused:
            self._count_answer(call)
        self.exhausted += call.is_last_try and not refused
        self.refused_by[status] += refused

    def _count_answer(self, call: CallHistory, number: int = 1) -> None:
        if self.refresh is not None:
            self.refreshed += number * call.is_due
            self.first += number * (not call.is_due)

    @property
    def ages(self) -> RefreshCounts | None:
        """The links by the age of their answers now; None without --refresh."""
        found = self.refresh
        if found is None or found.never is None or found.due is None or found.fresh is None:
            return found
        fresh = found.fresh + self.first + self.refreshed
        return RefreshCounts(found.seconds, found.never - self.first, fresh, found.due - self.refreshed, found.oldest)

    def take_back_refusal(self, status: int | None, call: CallHistory) -> None:
        """Count a refusal of this run as a failure, because the server is found to refuse everything."""
        self.refused -= 1
        self.failed += 1
        self.refused_by[status] -= 1
        self._count_answer(call, -1)

    @property
    def finished(self) -> int:
        """Calls that this run has a final verdict on: a row, a refusal or a failure."""
        return self.rows + self.refused + self.failed

    @property
    def outstanding(self) -> int | None:
        """Calls that the list still needs; None while unknown."""
        if self.read_to_end:
            return self.pending
        return None if self.to_make is None else max(self.to_make - self.finished, self.pending)

    @property
    def remaining(self) -> int | None:
        """Calls that this run has still to make; None while unknown."""
        needed = self.outstanding
        if needed is None or self.max_calls is None:
            return needed
        return min(needed, max(self.max_calls - (self.finished - self.idle), 0))
