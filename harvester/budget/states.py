"""An endpoint's state, which outlives the process and is the same for all that share the budget. Pure.

`throttling` has the rules by which the pause and the learned limits change.
"""

from dataclasses import asdict, dataclass, field, replace

import orjson

_FIRST_STEP = 2.0
"""The first factor by which a learned limit is raised."""


@dataclass(slots=True)
class LearnedLimit:
    """A window's limit as learned from a throttled response. since: the total when it was set or last raised.

    patience: attempts without a throttled response before it is raised. step: the factor by which it is raised. own:
    where raising ends, the largest limit that any process had configured; 0 for none.
    """

    limit: int
    since: int
    patience: int
    step: float = _FIRST_STEP
    own: int = 0


@dataclass(slots=True)
class EndpointThrottle:
    """The throttling of one token at one endpoint: open, paused, or paused with a probe in flight.

    Times are seconds since boot. opens_at: when the probe may be sent, or, once it is sent, when it counts as lost;
    None while open. probing: the probe was sent and has no response yet. strikes: throttled responses in a row, each of
    which lengthens the pause; 0 while open. early: True if an early probe followed the first. began_at: the first of
    them. paused_at: the last one, not counting late ones to attempts that were sent before it.

    passed: attempts that passed in each window before the first throttled response. suspected: by window, what passed
    before a throttled response that has taught nothing yet. reopened: by window, the total before the probe that last
    reopened it; what was sent before that fell into an earlier window of Bitly's. learned_limits: by window; a window
    that never proved too wide has none. full: while paused, Bitly reported its hour as used up, and our own limit is no
    larger than Bitly's.
    """

    opens_at: float | None = None
    paused_at: float = 0.0
    began_at: float = 0.0
    probing: bool = False
    strikes: int = 0
    early: bool = False
    passed: dict[str, int] = field(default_factory=dict)
    suspected: dict[str, int] = field(default_factory=dict)
    reopened: dict[str, int] = field(default_factory=dict)
    learned_limits: dict[str, LearnedLimit] = field(default_factory=dict)
    full: bool = False

    @property
    def paused(self) -> bool:
        """True from a throttled response until a probe has passed."""
        return self.opens_at is not None

    @property
    def wants_known_good(self) -> bool:
        """True while the next probe is an early one: beside a link throttled by itself there may be others."""
        return self.early and self.strikes == 1

    def lowered(self, window: str, limit: int) -> int:
        """Return a window's limit in force: the smaller of its own and the learned one. 0 means no limit."""
        learned = self.learned_limits.get(window)
        return limit if learned is None else min(limit or learned.limit, learned.limit)


ASK_SECONDS = 300.0
ASK_ATTEMPTS = 100
"""The least time and attempts between two requests for the limits, so that helper requests stay below 1 in 100."""
ASK_PAUSED_SECONDS = 60.0
"""The least time for one early request after a throttled response: Bitly reports a full hour only while it is full."""
ASK_AFTER_REFUSAL_SECONDS = 86400.0
"""The wait after a response that did not contain the limits."""
_UNDER_WAY = 5
"""Margin for attempts in flight: we have counted them, but Bitly's count may not include them yet."""


@dataclass(slots=True)
class ReportedLimits:
    """The hourly limit and usage that Bitly last reported for one endpoint. limit: None if it made no sense.

    asked_at: seconds since boot. base_count, base_total: Bitly's count and our total when its current hour was first
    seen; their growth since then differs by what other clients of the token used.
    """

    asked_at: float
    asked_total: int
    limit: int | None = None
    count: int = 0
    base_count: int = 0
    base_total: int = 0

    def asking_pays(self, throttle: EndpointThrottle, *, total: int, now: float, begin: bool) -> bool:
        """Return whether to ask Bitly again. total: our attempts ever. begin: True at the start of a run."""
        age = now - self.asked_at
        if self.limit is None:
            return age >= ASK_AFTER_REFUSAL_SECONDS
        if begin:
            return age >= ASK_SECONDS
        if throttle.paused and throttle.began_at > self.asked_at and age >= ASK_PAUSED_SECONDS:
            return True
        throttled_since = throttle.paused_at > self.asked_at
        return age >= ASK_SECONDS and (throttled_since or total - self.asked_total >= ASK_ATTEMPTS)

    def ask_soon(self, now: float) -> None:
        """Allow the next request after ASK_SECONDS instead of a day: this one did not reach Bitly."""
        self.asked_at = now - ASK_AFTER_REFUSAL_SECONDS + ASK_SECONDS

    def others(self, count: int, *, total: int, used: int) -> int:
        """Return how many attempts in Bitly's count were made by other clients, and store the count for next time.

        total: our attempts ever. used: those in the hour's window.
        """
        if self.limit is None or count < self.count:  # the first report, or Bitly has begun a new hour
            self.base_count, self.base_total = count, total
        self.count = count
        others = (count - self.base_count) - (total - self.base_total) - _UNDER_WAY
        return max(others, count - used, 0)


@dataclass(slots=True)
class ScopeState:
    """An endpoint's state as it is kept, as JSON."""

    throttle: EndpointThrottle
    reported: ReportedLimits | None = None

    @classmethod
    def parse(cls, text: str) -> "ScopeState":
        """Parse what `to_json` wrote."""
        stored = orjson.loads(text)
        throttle, reported = stored.get("throttle") or {}, stored.get("reported")
        learned = {window: LearnedLimit(**limit) for window, limit in throttle.pop("learned_limits", {}).items()}
        return cls(
            EndpointThrottle(**throttle, learned_limits=learned), ReportedLimits(**reported) if reported else None
        )

    def to_json(self) -> str:
        """Return the state as JSON."""
        return orjson.dumps(asdict(self)).decode()

    def after_reboot(self) -> "ScopeState":
        """Return what still holds when the times of an earlier boot mean nothing any more."""
        answered = self.reported is not None and self.reported.limit is not None  # else Bitly may be asked once more
        reported = replace(self.reported, asked_at=0.0) if self.reported and answered else None
        return ScopeState(EndpointThrottle(learned_limits=self.throttle.learned_limits), reported)
