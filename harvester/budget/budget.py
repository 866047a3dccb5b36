"""May the next attempt go now? Windows, month and throttling of a token, in a file that all processes share.

An attempt is counted in one transaction before it is sent, so a kill can only make us too careful. Windows are kept by
a clock that no step of the wall clock moves; the month by a calendar that was read from the wall clock once a boot, and
from the server's own dates since. Nothing here sleeps or knows of asyncio: every question is answered with "yes, and
it is counted" or with how long to wait and why.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from harvester.budget import throttling
from harvester.budget.database import SPANS, BudgetDatabase
from harvester.budget.limits import THROTTLED, Account, Limits, MonthExhausted, RequestedLimits, RetryAfter
from harvester.budget.throttling import HOUR, MINUTE, ReportedLimits
from harvester.budget.usage import LATEST_SECONDS, EndpointUsage, MonthlyQuota, months_near
from harvester.clock import from_epoch, month_of, next_month
from harvester.progress import WindowState

_POLL_SECONDS = 0.2
_FAST_PER_MINUTE = 1200
"""From so many attempts a minute on, a count need not be on the disk before the attempt goes."""
_CHECK_SECONDS = 1.0
_MOST_LEASED = 64
"""Where no window is to be held, so many attempts of one tenth of a second are counted at once."""


@dataclass(slots=True)
class _Lease:
    """Attempts that were counted at once, to be sent before a moment.

    months: those that they were counted in. total: the scope's, with them. given_back: not all were sent, and size is
    what was.
    """

    size: int = 0
    left: int = 0
    until: float = 0.0
    months: Sequence[str] = ()
    total: int = 0
    given_back: bool = False


class Budget:
    """A token's windows at one endpoint, and its account's month; several may share a Book."""

    def __init__(
        self,
        book: BudgetDatabase,
        account: Account,
        endpoint: str,
        wanted: RequestedLimits,
        rng: random.Random | None = None,
    ) -> None:
        self.month = MonthlyQuota(book, account)
        self.wanted = wanted
        self._book = book
        self._rng = rng or random.Random()  # noqa: S311 - spreads clients, guards nothing
        self._lease = _Lease()
        self._check_due = 0.0
        self._scope = EndpointUsage(book, account.server, account.token, endpoint)
        self._refresh_limits()

    @property
    def account(self) -> Account:
        """Whose budget it is at present."""
        return self.month.account

    @property
    def limits(self) -> Limits:
        """The limits kept at present, as of the last attempt or look: asked for, said by Bitly, or learned."""
        return self._limits

    @property
    def closed(self) -> bool:
        """True from a throttled answer until a probe's, as of the last attempt or look."""
        return self._scope.state.throttle.closed

    @property
    def fast(self) -> bool:
        """True where attempts may go so fast that each cannot be synced to the disk."""
        return not (0 < self._limits.per_minute < _FAST_PER_MINUTE or 0 < self._limits.per_hour < 60 * _FAST_PER_MINUTE)

    @property
    def said(self) -> ReportedLimits | None:
        """What Bitly has said of its limits, as of the last attempt or look."""
        return self._scope.state.said

    def use_token(self, fingerprint: str) -> None:
        """Count for another token from now on; the account stays the same."""
        self.close()
        self.month.account = self.account._replace(token=fingerprint)
        self._scope.open_for(fingerprint)

    # --- attempts --------------------------------------------------------------------------------------------------

    def try_acquire(self) -> RetryAfter | MonthExhausted | None:
        """Count an attempt and give None if it may be sent now; otherwise count nothing and say why not."""
        if self._lease.left and self._book.clock.boot_seconds() < self._lease.until:
            self._lease.left -= 1
            return None
        self._check_present()
        with self._book.transaction() as now:
            self._load()
            self._give_back()
            refused = self._refuse(now)
            lease = self._count(now) if refused is None else None
        self._lease = lease or self._lease  # only now is it counted
        return refused

    def close(self) -> None:
        """Give back what was counted and will not be sent."""
        with self._book.transaction():
            self._load()
            self._give_back()

    def room(self) -> float:
        """Give how many attempts may go at this moment; infinite without limits."""
        with self._book.transaction() as now:
            self._load()
            if self._scope.state.throttle.closed:
                return 0.0
            rooms = [limit - self._scope.used(window, now) for window, limit in self._held()]
            if self._limits.per_month:
                rooms.append(self._limits.per_month - self.month.spent_near(self._book.utc(now)))
        return max(min(rooms, default=math.inf), 0)

    def _check_present(self) -> None:
        now = self._book.clock.boot_seconds()
        if now >= self._check_due:
            self._check_due = now + _CHECK_SECONDS
            self._book.check_present()

    def _refuse(self, now: float) -> RetryAfter | MonthExhausted | None:
        if refused := self.month.refuse(self._limits.per_month, self._book.utc(now)) or self._closed(now):
            return refused
        waits = [RetryAfter(self._scope.wait(window, held, now), window, held) for window, held in self._held()]
        longest = max(waits, key=lambda wait: wait.seconds, default=None)
        return longest if longest and longest.seconds > 0.0 else None

    def _closed(self, now: float) -> RetryAfter | None:
        state = self._scope.state.throttle
        if state.opens_at is None or state.opens_at <= now:
            return None
        left = state.opens_at - now
        return RetryAfter(min(left, _POLL_SECONDS) if state.probing else left, THROTTLED)

    def _count(self, now: float) -> _Lease:
        """Count an attempt that goes now, and perhaps more; while it is throttled, it is the probe."""
        attempts = self._lease_size(now)
        if self._scope.state.throttle.closed:
            throttling.begin_probe(self._scope.state.throttle, now)
            self._scope.save()
        self._scope.add(attempts, now)
        months = months_near(self._book.utc(now))
        self.month.spend(months, attempts)
        if self.month.told_before:  # a day has passed
            self.month.renew_told(self._book.utc(now))
        return _Lease(attempts, attempts - 1, self._scope.last_at, months, self._scope.total)

    def _lease_size(self, now: float) -> int:
        """Say how many attempts to count at once: one, but where nothing but the month could refuse them."""
        if self._limits.per_minute or self._limits.per_hour or self._scope.state.throttle.closed:
            return 1
        size = self._lease.size if self._lease.given_back else min(2 * self._lease.size, _MOST_LEASED)
        if self._limits.per_month:  # others must not be told that the month is over because of what is only leased
            size = min(size, (self._limits.per_month - self.month.spent_near(self._book.utc(now))) // _MOST_LEASED)
        return 1 if self.month.told_before else max(size, 1)

    def _give_back(self) -> None:
        """Take what is left of the lease back; windows that others have counted in since keep it, which is careful."""
        lease = self._lease
        if lease.left:
            self.month.spend(lease.months, -lease.left)
            if self._scope.total == lease.total:
                self._scope.take_back(lease.left)
            lease.size, lease.left, lease.given_back = lease.size - lease.left, 0, True

    def made_late(self) -> None:
        """Count an attempt again: it was counted, but goes only now (a slow connection).

        In the windows, and in a month that has begun since.
        """
        with self._book.transaction() as now:
            self._load()
            self._scope.add(1, now)
            utc = self._book.utc(now)
            before = months_near(utc - LATEST_SECONDS)
            self.month.spend([month for month in months_near(utc) if month not in before], 1)

    # --- windows and month -----------------------------------------------------------------------------------------

    def _held(self) -> list[tuple[str, int]]:
        return [(window, limit) for window in SPANS if (limit := self._limits.of(window))]

    # --- throttling ------------------------------------------------------------------------------------------------

    def throttled(self, hint: float | datetime | None, *, sent_at: float) -> None:
        """A throttled answer came to an attempt sent at sent_at (elapsed seconds): close for everyone.

        Answers to attempts that were already under way when it closed say nothing new.
        """
        with self._book.transaction() as now:
            self._load()
            self._give_back()
            state = self._scope.state.throttle
            if state.closed and sent_at < state.closed_at:
                throttling.note_late(state)
            else:
                strikes = state.strikes + 1 if state.closed else 1
                seconds = throttling.closing_seconds(strikes, hint, self._book.utc(now), self._rng)
                passed = {window: self._passed(window, now) for window in SPANS}
                throttling.close(state, now=now, seconds=seconds, passed=passed)
            self._scope.save()

    def answered(self, *, sent_at: float) -> None:
        """An answer came that was not throttled: if it is the probe's, open again.

        One to an attempt that was under way before a throttled answer says nothing of what came after.
        """
        if not self._scope.state.throttle.closed:
            return
        with self._book.transaction():
            self._load()
            state = self._scope.state.throttle
            if state.probing and sent_at >= state.closed_at:
                limits = {window: self._limits.of(window) for window in SPANS}
                throttling.reopen(state, sent_at=sent_at, total=self._scope.total, limits=limits)
                self._scope.save()
                self._refresh_limits()

    def _passed(self, window: str, now: float) -> int:
        """Count what passed in a window before the throttled answer that has just come."""
        reopened = self._scope.total - self._scope.state.throttle.reopened.get(window, 0)
        return max(min(self._scope.used(window, now), reopened) - 1, 0)

    # --- what Bitly says -------------------------------------------------------------------------------------------

    def ask_due(self, *, begin: bool = False) -> bool:
        """Say whether Bitly should be asked for its limits; True is given to one process only.

        begin: True at the beginning of a run, which wants to know what was used meanwhile.
        """
        if not self.wanted.curious:
            return False
        with self._book.transaction() as now:
            self._load()
            said = self._scope.state.said
            if said and not said.asking_pays(self._scope.state.throttle, total=self._scope.total, now=now, begin=begin):
                return False
            self._scope.state.said = replace(
                said or ReportedLimits(0.0, 0), asked_at=now, asked_total=self._scope.total
            )
            self._scope.save()
            return True

    def not_answered(self) -> None:
        """Take note that the question for the limits did not reach Bitly: it may be asked again before long."""
        with self._book.transaction() as now:
            self._load()
            said = self._scope.state.said
            if said is not None and said.limit is None:
                said.ask_soon(now)
                self._scope.save()

    def observe(self, limit: int, count: int | None) -> int:
        """Take note of Bitly's limit for an hour, and of its count; give how many attempts of others it showed.

        Those are counted in our windows, as if they had been made now. count: None where it makes no sense.
        """
        with self._book.transaction() as now:
            self._load()
            said = self._scope.state.said or ReportedLimits(now, self._scope.total)
            others = (
                0 if count is None else said.others(count, total=self._scope.total, used=self._scope.used(HOUR, now))
            )
            if others:
                self._scope.add(others, now)
            said.limit = limit
            self._scope.state.said = said
            if count is not None and count >= limit >= self._own().per_hour > 0:
                throttling.note_full(self._scope.state.throttle)
            self._scope.save()
            self._refresh_limits()
        self._book.set_fast(fast=self.fast)
        return others

    # --- telling ---------------------------------------------------------------------------------------------------

    def windows(self) -> list[WindowState]:
        """Give what minute, hour and month hold at this moment."""
        with self._book.transaction() as now:
            self._load()
            states = [self._window_state(window, now) for window in SPANS]
            until = next_month(from_epoch(self._book.utc(now)))
            source = "default" if self.wanted.per_month is None else "asked"
            spent, limit = self.month.spent(month_of(self._book.utc(now))), self._limits.per_month
            if self.month.told_lately(self._book.utc(now)):
                source, limit = "bitly", min(limit, spent) or max(spent, 1)
                spent = max(spent, limit)
        return [*states, WindowState("month", limit, spent, until, source)]

    def leaving(self) -> list[tuple[float, int]]:
        """Give in how many seconds attempts leave the hour's window, and how many: by the minute, in order."""
        with self._book.transaction() as now:
            self._load()
            records = self._scope.records(now)
        found: dict[int, int] = {}
        for seconds, count in records:
            minute = math.ceil(seconds / SPANS[MINUTE])
            found[minute] = found.get(minute, 0) + count
        return [(minute * SPANS[MINUTE], count) for minute, count in sorted(found.items())]

    def opens_in(self) -> float:
        """Give in how many seconds the next attempt may go, as far as throttling is concerned; 0.0 for now."""
        with self._book.transaction() as now:
            self._load()
            opens_at = self._scope.state.throttle.opens_at
        return max((opens_at or now) - now, 0.0)

    @property
    def own_limits(self) -> Limits:
        """The limits without what throttled answers have taught: asked for, or said by Bitly."""
        return self._own()

    def at(self, seconds: float) -> datetime:
        """Give the moment that comes in so many seconds, by the budget's calendar."""
        return from_epoch(self._book.utc(self._book.clock.boot_seconds()) + seconds)

    def _window_state(self, window: str, now: float) -> WindowState:
        limit, used = self._limits.of(window), self._scope.used(window, now)
        wait = self._scope.wait(window, limit, now) if limit else 0.0
        until = from_epoch(self._book.utc(now + wait)) if wait else None
        return WindowState(window, limit, used, until, self._source(window))

    def _source(self, window: str) -> str:
        if self._scope.state.throttle.lowered(window, own := self._own().of(window)) != own:
            return "throttled"
        if (self.wanted.per_minute if window == MINUTE else self.wanted.per_hour) is not None:
            return "asked"
        return "bitly" if self._scope.state.said and self._scope.state.said.limit is not None else "default"

    # --- limits ----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read what any process has last written of this scope."""
        if self._scope.load():
            self._refresh_limits()
        if self._scope.state.throttle.ceilings and self._raise_ceilings():
            self._scope.save()
            self._refresh_limits()

    def _raise_ceilings(self) -> bool:
        own = self._own()
        limits = {window: own.of(window) for window in SPANS}
        return throttling.raise_ceilings(self._scope.state.throttle, total=self._scope.total, limits=limits)

    def _own(self) -> Limits:
        said = self._scope.state.said
        return self.wanted.limits(said.limit if said else None)

    def _refresh_limits(self) -> None:
        own, state = self._own(), self._scope.state.throttle
        per_minute, per_hour = (state.lowered(window, own.of(window)) for window in SPANS)
        self._limits = Limits(per_minute, per_hour, own.per_month)
