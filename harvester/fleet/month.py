"""An account's calendar month in a Redis that many hosts share."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from harvester.budget.limits import Account, MonthExhausted, PlanReport, RetryAfter
from harvester.clock import from_epoch, next_month
from harvester.fleet.server import RedisServer

LATEST_SECONDS = 60.0
"""The longest time between counting an attempt and sending it."""
_EDGE_SECONDS = 5.0
"""The script's EDGE_SECONDS: an attempt this close to a month's edge counts in both months."""
_TRUSTED_SECONDS = 86400.0
"""The script's DAY_SECONDS: how long Bitly's report is trusted, and how far its dates may correct the calendar."""


class RedisMonth:
    """A `Month` in Redis. Its calendar is Redis' clock, corrected by the dates of Bitly's answers within a day.

    A date further off may be Bitly's mistake: attempts then count in the months of both.
    """

    def __init__(self, server: RedisServer, account: Account) -> None:
        self.account = account
        self.reported_spent = False
        self._server = server
        self._ahead = 0.0
        self._corrects = True

    # --- for RedisBudget -------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The account's name and its token's: counted under both, so that naming it later forgets nothing."""
        return tuple(dict.fromkeys((self.account.name, self.account.token)))

    def utc(self, redis_seconds: float) -> float:
        """Return the calendar's time, in seconds since 1970, at a time of Redis' clock."""
        return redis_seconds + (self._ahead if self._corrects else 0.0)

    def now(self) -> float:
        """Return the calendar's present time, as far as a process can tell without asking."""
        return self.utc(self._server.redis_seconds(self._server.clock.boot_seconds()))

    def see(self, reply: Mapping[str, Any]) -> None:
        """Follow what a reply says of the calendar."""
        self._ahead, self._corrects = reply["ahead"], reply["corrects"]

    def refusal(self, reply: Mapping[str, Any], limit: int) -> RetryAfter | MonthExhausted | None:
        """Return why the month allows no attempt, by the script's reply; None if it does."""
        utc = self.utc(reply["now"] / 1000)
        if reply.get("reported"):
            self.reported_spent = True
            return MonthExhausted(next_month(from_epoch(utc)), reported=True)
        if (full := reply.get("full")) is None:
            return None
        over = next_month(datetime.fromisoformat(f"{full}-01T00:00:00+00:00"))
        # Close to the edge it is only moments until attempts count in the next month alone.
        left = over.timestamp() + 2 * _EDGE_SECONDS - utc
        return RetryAfter(left, "month", limit) if left <= 4 * _EDGE_SECONDS else MonthExhausted(over)

    def reported_lately(self, reported: float | None, utc: float) -> bool:
        """Return whether Bitly reported the month as spent within a day; sets reported_spent.

        reported: the script's.
        """
        self.reported_spent = reported is not None
        return reported is not None and utc - reported < _TRUSTED_SECONDS

    # --- Bitly's report --------------------------------------------------------------------------------------------

    def mark_spent(self) -> None:
        """As in `Month`."""
        self._call({"spent": True, "latest": round(LATEST_SECONDS * 1000)})
        self.reported_spent = True

    def clear_spent(self) -> None:
        """As in `Month`."""
        self._call({"spent": False})
        self.reported_spent = False

    def see_date(self, date: datetime, *, sent_at: float | None = None, asked: bool = False) -> None:  # noqa: ARG002
        """As in `Month`. The calendar is not asked about, so that no date was asked for."""
        now, redis = self._server.clock.boot_seconds(), self._server
        earliest, utc = date.timestamp(), redis.redis_seconds(now) + self._ahead
        latest = earliest + 1.0 + (0.0 if sent_at is None else now - sent_at)
        nearest = min(max(utc, earliest), latest)
        if abs(nearest - utc) > _EDGE_SECONDS / 2:
            self._call({"ahead": nearest - redis.redis_seconds(now)})

    def see_no_date(self) -> None:
        """As in `Month`: nothing was asked."""

    def next_begins(self) -> datetime:
        """As in `Month`."""
        ahead = 0.0 if self._corrects else self._ahead
        return next_month(from_epoch(self.now() + ahead - LATEST_SECONDS))

    def ends_at(self, utc: float) -> datetime:
        """Return the end of the month at a moment of the calendar."""
        return next_month(from_epoch(utc))

    def note_plan(self, month: int, entries: Sequence[Any]) -> None:
        """As in `Month`."""
        self._call({"plan": orjson.dumps([month, entries]).decode()})

    def plan_report(self) -> PlanReport | None:
        """As in `Month`."""
        reply = self._call({})
        if "plan" not in reply:
            return None
        age = max((reply["now"] - reply["plan_at"]) / 1000, 0.0)
        month, entries = orjson.loads(reply["plan"])
        return PlanReport(int(month), list(entries), age) if age < _TRUSTED_SECONDS else None

    def _call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        # The plan is a token's own.
        named = {"server": self.account.server, "names": list(reversed(self.names))}
        reply = self._server.call("month", [], {**named, **arguments})
        self.see(reply)
        return reply
