"""What a process remembers of a shared budget, should Redis forget it: months, totals, and when it counted last."""

from collections.abc import Callable, Mapping

_KEEP_SECONDS = 5.0
"""The least time between two calls of `keep`."""


class SharedMemory:
    """What this process has seen of a Redis.

    generation: the name of Redis' memory, which changes when that is lost. months: attempts by the field of Redis that
    has them. totals: by an endpoint's keys: its changes and its attempts so far. counted_at: when attempts were last
    counted, in seconds since boot; None if never. keep: called now and then, to store it for the runs to come.

    boot_seconds: the clock. window_seconds: how long a window holds an attempt at most.
    """

    def __init__(self, boot_seconds: Callable[[], float], window_seconds: float) -> None:
        self.generation = ""
        self.months: dict[str, int] = {}
        self.totals: dict[tuple[str, ...], tuple[int, int]] = {}
        self.counted_at: float | None = None
        self.keep: Callable[[], None] = _nowhere
        self._boot_seconds = boot_seconds
        self._window_seconds = window_seconds
        self._kept_at = boot_seconds()

    @property
    def is_recent(self) -> bool:
        """Whether attempts were counted so lately that a window may still hold them."""
        return self.counted_at is not None and self._boot_seconds() - self.counted_at < self._window_seconds

    def see(self, keys: tuple[str, ...], seq: int, total: int) -> None:
        """Remember an endpoint's changes and attempts so far."""
        self.totals[keys] = (seq, total)

    def see_months(self, months: Mapping[str, int]) -> None:
        """Remember months' attempts, of which there may have been more."""
        for field, spent in months.items():
            self.months[field] = max(spent, self.months.get(field, 0))

    def see_counted(self, months: Mapping[str, int]) -> None:
        """Remember that attempts were counted now, and what the months have since."""
        self.months.update(months)
        self.counted_at = now = self._boot_seconds()
        if now - self._kept_at >= _KEEP_SECONDS:
            self._kept_at = now
            self.keep()

    def begin(self, generation: str) -> None:
        """Take up another memory of Redis: what it has of endpoints is new."""
        if generation != self.generation:
            self.generation = generation
            self.totals.clear()


def _nowhere() -> None:
    """Keep nothing."""
