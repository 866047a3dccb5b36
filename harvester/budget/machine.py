"""The budget of one machine: a token's windows, month and throttling in a file that all its processes share."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime

from harvester.budget import throttling
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import (
    HOUR,
    MINUTE,
    MOST_LEASED,
    SPANS,
    THROTTLED,
    Account,
    Counted,
    Lease,
    Limits,
    MonthExhausted,
    RequestedLimits,
    RetryAfter,
)
from harvester.budget.states import EndpointThrottle, ReportedLimits
from harvester.budget.throttling import LearnedBefore
from harvester.budget.usage import LATEST_SECONDS, EndpointUsage, MonthlyQuota, months_at
from harvester.clock import from_epoch, month_of
from harvester.errors import BudgetBusy, OutputError
from harvester.progress import WindowState

_POLL_SECONDS = 0.2
"""The longest wait while a probe is in flight: its response may reopen the endpoint at any moment."""
_BUSY_SECONDS = 0.5
"""The wait before a busy file is tried again."""
_HIGH_RATE_PER_MINUTE = 1200
"""From 20 attempts a second on, a sync of the disk for each of them would hold them back."""


class MachineBudget:
    """A `Budget` in the machine's file; several may share a database. Its methods are described there.

    requested: the limits that the options ask for.
    """

    def __init__(
        self,
        database: BudgetDatabase,
        account: Account,
        endpoint: str,
        requested: RequestedLimits,
        rng: random.Random | None = None,
    ) -> None:
        self.month = MonthlyQuota(database, account)
        self.requested = requested
        self._database = database
        self._rng = rng or throttling.RNG
        self._lease = Lease()
        self._endpoint = endpoint
        self._before = LearnedBefore()
        self._usage = EndpointUsage(database, account.server, account.token, endpoint)
        self._refresh_limits()

    @property
    def account(self) -> Account:
        return self.month.account

    @property
    def paused(self) -> bool:
        """True from a throttled response until a probe has passed."""
        return self._usage.state.throttle.opens_at is not None  # asked twice a call: a property more takes its time

    @property
    def wants_known_good(self) -> bool:
        return self._usage.state.throttle.wants_known_good

    @property
    def high_rate(self) -> bool:
        """True where attempts may go so fast that a commit cannot wait for the disk each time."""
        minute, hour = self.limits.per_minute, self.limits.per_hour
        return not (0 < minute < _HIGH_RATE_PER_MINUTE or 0 < hour < 60 * _HIGH_RATE_PER_MINUTE)

    @property
    def reported_per_hour(self) -> int | None:
        reported = self._usage.state.reported
        return reported.limit if reported else None

    @property
    def own_limits(self) -> Limits:
        return self.requested.limits(self.reported_per_hour)

    def use_token(self, fingerprint: str) -> None:
        with suppress(OutputError):  # then the rest of a lease stays counted
            self.close()
        self._lease = Lease()
        self._usage.token = fingerprint
        self.month.account = self.account._replace(token=fingerprint)

    # --- attempts --------------------------------------------------------------------------------------------------

    def try_acquire(self) -> RetryAfter | MonthExhausted | None:
        if self._lease.left and self._database.clock.boot_seconds() < self._lease.counted.at:
            self._lease.left -= 1
            return None
        # Nothing may be sent uncounted, so a file that cannot be read or written ends the run. A busy one, which
        # another process holds for longer than the event loop may wait, is a wait like any other.
        try:
            self._database.check_present()
            with self._transaction() as now:
                self._give_back()
                refusal = self._refuse(now)
                lease = self._count(now) if refusal is None else None
        except BudgetBusy:
            return RetryAfter(_BUSY_SECONDS, "budget")
        self._lease = lease or self._lease  # after the commit: only now is it counted
        return refusal

    def close(self) -> None:
        if self._lease.left:
            with self._transaction():
                self._give_back()

    def room(self) -> float:
        with self._transaction() as now:
            if self.paused:
                return 0.0
            rooms = [limit - self._usage.used(window, now) for window, limit in self._limited_windows()]
            if self.limits.per_month:
                rooms.append(self.limits.per_month - self.month.spent_near(self._database.utc(now)))
        return max(min(rooms, default=math.inf), 0)

    def _refuse(self, now: float) -> RetryAfter | MonthExhausted | None:
        if refusal := self.month.why_blocked(self.limits.per_month, now) or self._throttled_wait(now):
            return refusal
        return self._window_wait(now)

    def _window_wait(self, now: float) -> RetryAfter | None:
        longest: RetryAfter | None = None
        for window, limit in self._limited_windows():
            seconds = self._usage.wait(window, limit, now)
            if seconds > (longest.seconds if longest else 0.0):
                longest = RetryAfter(seconds, window, limit)
        return longest

    def _throttled_wait(self, now: float) -> RetryAfter | None:
        opens_at = self._throttle.opens_at
        if opens_at is None or opens_at <= now:
            return None
        left = opens_at - now
        return RetryAfter(min(left, _POLL_SECONDS) if self._throttle.probing else left, THROTTLED)

    def _count(self, now: float) -> Lease:
        """Count the attempt that is sent now, and perhaps a lease with it; during a pause the attempt is the probe."""
        attempts = self._lease_size(now)
        if self.paused:
            throttling.begin_probe(self._throttle, now)
            self._usage.save()
        self._usage.add(attempts, now)
        months = months_at(self._database, now)
        self.month.spend(months, attempts)
        if self.month.reported_spent:  # a day has passed since that report
            self.month.renew_report(self._database.utc(now))
        counted = Counted(self.account.token, self._usage.last_at, months, self.month.reported_spent)
        return Lease(attempts, attempts - 1, counted)

    def _lease_size(self, now: float) -> int:
        """Return how many attempts to count at once: one, unless every limit is far."""
        # One transaction costs about 45 µs of CPU, an attempt out of a lease 1 µs (benchmarks/quota.py): where no limit
        # is near calls go at the server's pace, and counting one by one would double what they cost. A lease lasts for
        # a tenth of a second, the precision of a record, so none of its attempts is sent later than it is counted for.
        # It doubles as long as it is used up in time; what is left is given back. A kill costs what is left of one.
        size = self._lease.next_size
        if size <= 1 or self.paused or self.month.reported_spent:
            return 1
        # No other process may be refused because of attempts that are only leased.
        lefts = [limit - self._usage.used(window, now) for window, limit in self._limited_windows()]
        if self.limits.per_month:
            lefts.append(self.limits.per_month - self.month.spent_near(self._database.utc(now)))
        return max(min(size, *(left // MOST_LEASED for left in lefts)), 1) if lefts else size

    def _give_back(self) -> None:
        """Undo the count of what is left of the lease."""
        lease = self._lease
        if lease.left:
            self.month.spend(lease.counted.months, -lease.left)
            self._usage.remove(lease.left, lease.counted.at)
            lease.end()

    def try_ask_date(self) -> bool:
        with suppress(BudgetBusy), self._transaction() as now:
            if self._database.date_wanted(now) and not self._throttled_wait(now) and not self._window_wait(now):
                self._give_back()
                self._database.note_date_asked(now)
                lease = self._count(now)
                self._lease = replace(lease, counted=lease.counted._replace(asks_date=True))
                return True
        return False

    @property
    def counted(self) -> Counted:
        return self._lease.counted

    def give_back(self, attempt: Counted) -> None:
        with self._transaction() as now:
            usage, month = self._counted_by(attempt)
            usage.remove(1, attempt.at)
            month.spend(attempt.months, -1)
            if attempt.asks_month:
                month.ask_again(self._database.utc(now))
            if attempt.asks_date:
                self._database.note_date_asked(None)

    def sent_late(self, attempt: Counted) -> Counted | None:
        # Not synced: the disk may be why it is late, and would make it late again. What a power cut can take back is
        # the move, not the count, and after a boot an attempt is taken to be as recent as it can be.
        with self._database.unsynced(), self._transaction() as now:
            usage, month = self._counted_by(attempt)
            if now - attempt.at > LATEST_SECONDS:
                return None
            months = month.move(attempt.months, now, self.limits.per_month)
            return attempt._replace(at=usage.move(attempt.at, now), months=months) if months else None

    def _counted_by(self, attempt: Counted) -> tuple[EndpointUsage, MonthlyQuota]:
        """Return what counted an attempt: the token may have been rotated since."""
        if attempt.token == self.account.token:
            return self._usage, self.month
        account = self.account._replace(token=attempt.token)
        usage = EndpointUsage(self._database, account.server, account.token, self._endpoint)
        usage.load()
        return usage, MonthlyQuota(self._database, account)

    def _limited_windows(self) -> list[tuple[str, int]]:
        return [(window, limit) for window in SPANS if (limit := self.limits.of(window))]

    # --- throttling ------------------------------------------------------------------------------------------------

    def throttled(self, hint: float | datetime | None, *, sent_at: float, bitlink: str = "") -> None:
        with self._transaction() as now:
            self._give_back()
            state = self._throttle
            if state.paused and sent_at <= state.paused_at:  # it was under way when an earlier response began the pause
                throttling.note_late(state)
            else:
                if not state.paused:
                    self._before.keep(bitlink, state.learned_limits)
                passed = {window: self._passed(window, now) for window in SPANS}
                throttling.pause_as_hinted(state, hint, self._database.utc(now), self._rng, now=now, passed=passed)
            self._usage.save()

    def unlearn(self, bitlink: str) -> None:
        if self.paused or (before := self._before.take(bitlink)) is None:
            return
        with self._transaction():
            self._throttle.learned_limits = before
            self._throttle.suspected.clear()
            self._usage.save()
            self._refresh_limits()

    def answered(self, *, sent_at: float) -> None:
        if not self.paused:
            return
        with self._transaction():
            state = self._throttle
            # An attempt that was under way before the throttled one says nothing about what came after it.
            if state.probing and sent_at >= state.paused_at:
                limits = {window: self.limits.of(window) for window in SPANS}
                throttling.reopen(state, sent_at=sent_at, total=self._usage.total, limits=limits)
                self._usage.save()
                self._refresh_limits()

    def _passed(self, window: str, now: float) -> int:
        """Return how many attempts passed in a window before the throttled response that has just come."""
        # What was sent before the probe that last reopened the window lay in an earlier window of Bitly's.
        since_reopened = self._usage.total - self._throttle.reopened.get(window, 0)
        return max(min(self._usage.used(window, now), since_reopened) - 1, 0)

    # --- Bitly's report --------------------------------------------------------------------------------------------

    def ask_due(self, *, begin: bool = False) -> bool:
        if not self.requested.needs_report:
            return False
        with self._transaction() as now:
            reported, total = self._usage.state.reported, self._usage.total
            if reported and not reported.asking_pays(self._throttle, total=total, now=now, begin=begin):
                return False
            self._usage.state.reported = replace(reported or ReportedLimits(0.0, 0), asked_at=now, asked_total=total)
            self._usage.save()
            return True

    def not_answered(self) -> None:
        with self._transaction() as now:
            reported = self._usage.state.reported
            if reported is not None and reported.limit is None:
                reported.ask_soon(now)
                self._usage.save()

    def record_reported(self, limit: int, count: int | None) -> int:
        with self._transaction() as now:
            self._give_back()  # what is only leased was not sent
            reported = self._usage.state.reported or ReportedLimits(now, self._usage.total)
            others = 0
            if count is not None:
                others = reported.others(count, total=self._usage.total, used=self._usage.used(HOUR, now))
            if others:
                self._usage.add(others, now)
            reported.limit = limit
            self._usage.state.reported = reported
            if count is not None and count >= limit >= self.own_limits.per_hour > 0:
                throttling.note_full(self._throttle)
            self._usage.save()
            self._refresh_limits()
        self._database.sync_each_commit(not self.high_rate)
        return others

    # --- state -----------------------------------------------------------------------------------------------------

    def windows(self) -> list[WindowState]:
        with self._transaction() as now:
            self._give_back()
            states = [self._window_state(window, now) for window in SPANS]
            utc = self._database.utc(now)
            spent, limit = self.month.spent(month_of(utc)), self.limits.per_month
            limit, used, source = self.requested.month_use(limit, spent, reported_spent=self.month.reported_lately(utc))
        return [*states, WindowState("month", limit, used, self.month.ends_at(now), source)]

    def hour_releases(self) -> list[tuple[float, int]]:
        with self._transaction() as now:
            records = self._usage.records(now)
        by_minute: Counter[int] = Counter()
        for seconds, count in records:
            by_minute[math.ceil(seconds / SPANS[MINUTE])] += count
        return [(minute * SPANS[MINUTE], count) for minute, count in sorted(by_minute.items())]

    def opens_in(self) -> float:
        with self._transaction() as now:
            opens_at = self._throttle.opens_at
        return max((opens_at or now) - now, 0.0)

    def at(self, seconds: float) -> datetime:
        return from_epoch(self._database.utc(self._database.clock.boot_seconds()) + seconds)

    def _window_state(self, window: str, now: float) -> WindowState:
        limit, used = self.limits.of(window), self._usage.used(window, now)
        wait = self._usage.wait(window, limit, now) if limit else 0.0
        until = from_epoch(self._database.utc(now + wait)) if wait else None
        return WindowState(window, limit, used, until, self._source(window))

    def _source(self, window: str) -> str:
        own = self.own_limits.of(window)
        lowered = self._throttle.lowered(window, own) != own
        return self.requested.source_of(window, throttled=lowered, reported=self.reported_per_hour is not None)

    @property
    def _throttle(self) -> EndpointThrottle:
        return self._usage.state.throttle

    @contextmanager
    def _transaction(self) -> Iterator[float]:
        """Open a write transaction and load what any process wrote last; yields the seconds since boot."""
        with self._database.transaction() as now:
            changed = self._usage.load()
            if self._throttle.learned_limits and self._raise_learned_limits():
                self._usage.save()
                changed = True
            if changed:
                self._refresh_limits()
            yield now

    def _raise_learned_limits(self) -> bool:
        own = self.own_limits
        limits = {window: own.of(window) for window in SPANS}
        return throttling.raise_learned_limits(self._throttle, total=self._usage.total, limits=limits)

    def _refresh_limits(self) -> None:
        own = self.own_limits
        per_minute, per_hour = (self._throttle.lowered(window, own.of(window)) for window in SPANS)
        self.limits = Limits(per_minute, per_hour, own.per_month)
