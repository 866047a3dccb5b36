"""The calls that a list still needs: read in batches, sorted, and handed to the workers.

A bitlink passes three questions. Is its call in progress? Then it is a duplicate. Does the ledger know it from an
earlier line of this list? A duplicate too. Is it settled since an earlier run? Then it needs no call. What is left
becomes a `Call`.

With --refresh, a link whose answer is due is put aside; those put aside follow when the list has been read to its end
(`worklist.refresh` has the rules).

A call is in progress from the line that names it until its verdict is committed to the ledger. The ledger alone would
not do: between a worker's request and the commit the ledger does not know the call, and a second line with the same
bitlink would buy it twice. The ledger answers for everything older, so that memory does not grow with the list.

Two bounds keep the list from running ahead of the calls. The worklist is refilled below its low-water mark, not when
it is empty: a batch is read in a thread and compared with the ledger, and no worker should wait for that. The mark is
a minute's window of calls, so that the end of a list that fits into the present window is seen while there is still
something to gain by sending at once (`remaining`).
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from threading import Lock
from typing import Any, TypeAlias

import orjson

from harvester.bearer import Token
from harvester.budget.budget import Budget
from harvester.dataset.dataset import Dataset
from harvester.dataset.sidecars import MOST_INVALID_LINES
from harvester.events import RunObserver
from harvester.links.batch import Batch, Feed, Link
from harvester.progress import Carried, InvalidLine, RunProgress
from harvester.rows.call import GIVEN_UP_RUNS, WHOLE, CallState, Known
from harvester.shutdown import ShutdownSignal
from harvester.storage.scratch import DistinctKeys
from harvester.worklist.calls import Call, DueCalls
from harvester.worklist.refresh import Refresh, was_answered

LOW_WATER = 1000
"""The list is read on when fewer calls than this wait for a worker, or fewer than a minute's window."""
MOST_READ_AHEAD = 20_000
SCRATCH = "scratch.sqlite"
"""A temporary file in the private folder: for the count of the list, and then for what its lines carry."""


InThread: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments in another thread and returns its result."""


class CarriedValues:
    """Counts the lines that name a link again with other values to carry than its first line; the first ones count.

    A digest of each link's values is kept in a file, which is made when the first link carries something, so that
    memory does not grow with the list. folder: returns where the file may be.
    """

    def __init__(self, folder: Callable[[], str]) -> None:
        self._folder = folder
        self._digests: DistinctKeys | None = None
        self._turn = Lock()
        self._closed = False

    def see(self, links: Sequence[tuple[bytes, Carried]]) -> int:
        """Return how many of these lines, each with its call's key, have other values than the first of their link.

        Raises:
            OutputError: the file cannot be written.
        """
        digests = [
            (key, sha256(orjson.dumps(carried, option=orjson.OPT_SORT_KEYS)).digest()[:16]) for key, carried in links
        ]
        with self._turn:
            if self._closed:
                return 0
            if self._digests is None:
                self._digests = DistinctKeys(os.path.join(self._folder(), SCRATCH)).__enter__()
            return self._digests.add_with_digests(digests)

    def close(self) -> None:
        """Delete the file."""
        with self._turn:
            self._closed = True
            if self._digests is not None:
                self._digests.__exit__()
                self._digests = None


class Worklist:
    """The calls of one list: `read` and `add` fill it, `wait_for_call` and `take` empty it.

    ready: the calls that wait for a worker. in_progress: the keys of the calls between list and ledger; the committer
    removes them. in_thread: runs a function in the thread that reads the ledger. known_good_links: the client's, to
    which bitlinks that have a row already are added. progress: counts the list's lines and the calls pending. reopened:
    keys of calls that an earlier run settled, that are open again, and that this run does not make any more.
    retry_failed, retry_refused: make calls again that failed too often, or were refused. refresh: the rules by which
    links with an answer are asked for again.
    """

    def __init__(
        self,
        feed: Feed,
        dataset: Dataset,
        in_progress: set[bytes],
        in_thread: InThread,
        known_good_links: deque[str],
        budget: Budget,
        shutdown: ShutdownSignal,
        observer: RunObserver,
        progress: RunProgress,
        *,
        token: Token,
        retry_failed: bool = False,
        retry_refused: bool = False,
        refresh: Refresh | None = None,
    ) -> None:
        self.progress = progress
        self.reopened: set[bytes] = set()
        self._feed = feed
        self._dataset = dataset
        self._in_progress = in_progress
        self._in_thread = in_thread
        self._known_good_links = known_good_links
        self._budget = budget
        self._shutdown = shutdown
        self._observer = observer
        self._token = token
        self._retry_failed = retry_failed
        self._retry_refused = retry_refused
        self.ready: deque[Call] = deque()
        self._filled = asyncio.Event()
        self._low = asyncio.Event()
        self._closed = False
        self._carried = CarriedValues(lambda: dataset.location.private)
        self._refresh = refresh
        self._due = DueCalls(refresh, lambda: dataset.location.private) if refresh else None
        self._put_aside: list[tuple[Call, Known]] = []
        self._never = self._fresh = 0
        self._low_water = LOW_WATER

    @property
    def remaining(self) -> int | None:
        """Calls that no worker has taken yet; None until the list was read to its end."""
        aside = self._due.waiting if self._due else 0
        return len(self.ready) + aside if self.progress.read_to_end else None

    # --- filling ---------------------------------------------------------------------------------------------------

    async def read(self) -> list[Call] | None:
        """Read the next batch of lines and return the calls that it needs, which may be none; behind the list's end
        the calls that were put aside; then None.

        Raises:
            RunStopping: the run is ending. InputBroken: the list cannot be read further.
        """
        batch = None if self.progress.read_to_end else await self._shutdown.unless_stopping(self._feed.next())
        if batch is None:
            if not self.progress.read_to_end:
                self._end_list()
            due: list[Call] = await self._in_thread(self._due.take) if self._due else []
            self._in_progress.update(call.key for call in due)
            return due or None
        hide_token(batch, self._token)
        self._count(batch)
        claimed = self._claim(batch.links)
        known: dict[bytes, Known] = await self._in_thread(self._dataset.ledger.known, [key for _, key in claimed])
        if batch.carries:
            lines = [(self._dataset.rows.key(link.bitlink), link.carried) for link in batch.links]
            self.progress.listed.differing += await self._in_thread(self._carried.see, lines)
        if known:
            calls = [call for link, key in claimed if (call := self._sort(link, key, known.get(key)))]
        else:
            calls = [tuple.__new__(Call, (link, key, None, 0, WHOLE, False)) for link, key in claimed]  # half the time
            self.progress.listed.links += len(calls)
            self._never += len(calls)
        if self._due and self._put_aside:
            aside, self._put_aside = self._put_aside, []
            await self._in_thread(self._due.add, aside)
        return calls

    def _end_list(self) -> None:
        """Note that the list has been read to its end; the links that were found in it are counted by age."""
        progress = self.progress
        if progress.refresh is not None and self._due is not None:
            due = self._due.waiting
            progress.refresh = replace(progress.refresh, never=self._never, fresh=self._fresh, due=due)
        progress.read_to_end = True

    def add(self, calls: list[Call]) -> None:
        """Hand the calls to the workers."""
        # Those that are due were counted when they were put aside.
        self.count_pending([call for call in calls if not call.is_due] if self._due else calls)
        self.ready.extend(calls)
        self._filled.set()

    def count_pending(self, calls: Sequence[Call]) -> None:
        """Count calls that are to be made, by the workers or by others."""
        self.progress.pending += len(calls)
        self.progress.repeated += len(calls) - [call.previous for call in calls].count(None)

    async def wait_until_low(self) -> None:
        """Return once fewer calls than the low-water mark wait for a worker.

        Raises:
            RunStopping: the run is ending.
        """
        while len(self.ready) >= self._renewed_low_water():
            self._low.clear()
            await self._shutdown.unless_stopping(self._low.wait())

    def close(self) -> None:
        """Declare the list ended: workers that wait for a call get none."""
        self._closed = True
        self._filled.set()
        self._carried.close()
        if self._due:
            self._due.close()

    def _renewed_low_water(self) -> int:
        self._low_water = max(LOW_WATER, min(self._budget.limits.per_minute, MOST_READ_AHEAD))
        return self._low_water

    def _count(self, batch: Batch) -> None:
        listed = self.progress.listed
        self.progress.column = batch.column or self.progress.column
        listed.lines += batch.lines
        listed.blank += batch.blank
        listed.comments += batch.comments
        listed.headers += batch.headers
        listed.invalid += len(batch.invalid)
        for number, bad in enumerate(batch.invalid, listed.invalid - len(batch.invalid) + 1):
            self._observer.invalid(bad)
            if number > MOST_INVALID_LINES:
                continue
            line = self._dataset.rows.failure(
                "invalid", file=bad.file, line=bad.line, text=bad.text, message=bad.reason
            )
            self._dataset.note_invalid(line)

    def _claim(self, links: Sequence[Link]) -> list[tuple[Link, bytes]]:
        """Add the bitlinks' keys to those in progress; return links and keys without duplicates, which are there."""
        key_of, in_progress, claimed = self._dataset.rows.key, self._in_progress, []
        for link in links:
            key = key_of(link.bitlink)
            if key not in in_progress:
                in_progress.add(key)
                claimed.append((link, key))
        self.progress.listed.duplicates += len(links) - len(claimed)
        return claimed

    def _sort(self, link: Link, key: bytes, known: Known | None) -> Call | None:
        """Return the call that a claimed bitlink needs, None if it needs none. known: what the ledger has on it."""
        listed = self.progress.listed
        if known is None:
            listed.links += 1
            self._never += 1
            return Call(link, key, None)
        if known.seen == self._dataset.invocation:
            listed.duplicates += 1
            self._in_progress.discard(key)
            return None
        listed.links += 1
        if self._refresh is not None and was_answered(known):
            self._look_at_age(link, key, known)
            return None
        if should_retry(known, retry_failed=self._retry_failed, retry_refused=self._retry_refused):
            self.reopened.discard(key)
            self._never += 1
            return Call(link, key, known.state, known.failed_runs)
        self._see_known(link, key, known)
        return None

    def _look_at_age(self, link: Link, key: bytes, known: Known) -> None:
        """Put a link aside if its last answer is due; else it needs no call."""
        assert self._refresh is not None
        if not self._refresh.is_due(known):
            self._fresh += 1
            self._see_known(link, key, known)
            return
        self.reopened.discard(key)
        self._dataset.note_seen(key)  # so that a later line with the link is a duplicate
        call = Call(link, key, known.state, known.failed_runs, known.shortfall, is_due=True)
        self.count_pending([call])
        self._put_aside.append((call, known))

    def _see_known(self, link: Link, key: bytes, known: Known) -> None:
        self._dataset.note_seen(key)
        room = len(self._known_good_links) < (self._known_good_links.maxlen or 0)
        if room and known.state is CallState.ROW and not self._dataset.totals.idle:  # an idle row is no answer
            self._known_good_links.append(link.bitlink)
        self.progress.known += 1
        self.progress.given_up += known.state is CallState.FAILED

    # --- emptying --------------------------------------------------------------------------------------------------

    async def wait_for_call(self) -> bool:
        """Return True as soon as there is a call to take, False when there will be none."""
        while not self.ready:
            if self._closed:
                return False
            self._filled.clear()
            self._low.set()
            await self._filled.wait()
        return True

    def take(self) -> Call:
        """Remove the next call and return it; there must be one."""
        if len(self.ready) <= self._low_water:
            self._low.set()
        return self.ready.popleft()


def should_retry(known: Known, *, retry_failed: bool, retry_refused: bool) -> bool:
    """True if a known call should be made again."""
    if known.state is CallState.FAILED:
        return retry_failed or known.failed_runs < GIVEN_UP_RUNS
    return known.state is CallState.REFUSED and retry_refused


def hide_token(batch: Batch, token: Token) -> None:
    """Replace the token where lines of a batch show it; a link that has it in its name becomes an invalid line.

    Such lines come from logs of requests, or from a token pasted into the list. What is stored or sent must not have
    it. So does a link whose row would carry the token.
    """
    # One look at all names, because no list should have the token in it.
    suspect = token.is_in("\n".join([link.bitlink for link in batch.links])) or batch.carries
    if suspect and (with_token := [each for each in batch.links if _shows(each, token)]):
        lines = {(link.file, link.line) for link in with_token}
        batch.links = [link for link in batch.links if (link.file, link.line) not in lines]
        batch.invalid += [InvalidLine(link.bitlink, "contains the token", link.file, link.line) for link in with_token]
        batch.invalid.sort(key=lambda each: each.line)
    batch.invalid = [bad._replace(text=token.hidden_if_long(bad.text)) for bad in batch.invalid]


def _shows(link: Link, token: Token) -> bool:
    """Return whether a link has the token in its name, or its row would carry it, in a value or in a name."""
    carried = link.carried or {}
    return token.is_in(link.bitlink) or any(token.is_in(each) for each in (*carried, *carried.values()) if each)
