"""Repeats of a call that failed in passing: how often, and how long apart (tenacity)."""

import time
from collections.abc import Awaitable, Callable

import tenacity

from harvester.bitly import Hint, Transient, Unreadable, Verdict
from harvester.throttle import hinted_seconds

_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 300.0


async def repeated(
    attempt: Callable[[], Awaitable[Verdict]],
    *,
    attempts: int,
    backoff_seconds: float,
    pause: Callable[[float], Awaitable[None]],
) -> tuple[Verdict, int]:
    """Attempt until a verdict is neither Transient nor Unreadable, or attempts are made; give the last, and how many.

    backoff_seconds: the first pause is at most so long.
    """
    # A retrier of its own for every call: one shared by tasks would mix up their results.
    retrier = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(lambda verdict: isinstance(verdict, Transient | Unreadable)),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), _UnreadableTwice()),
        wait=_Backoff(backoff_seconds),
        sleep=pause,
        retry_error_callback=_last_verdict,
    )
    result: Verdict = await retrier(attempt)
    return result, int(retrier.statistics["attempt_number"])


class _Backoff(tenacity.wait.wait_base):
    """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

    A server's hint counts if it asks for longer.
    """

    def __init__(self, seconds: float) -> None:
        self._jittered = tenacity.wait_random_exponential(multiplier=seconds, max=_LONGEST_BACKOFF_SECONDS)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        hint: Hint = getattr(_last_verdict(retry_state), "hint", None)
        return max(self._jittered(retry_state), hinted_seconds(hint, time.time(), _LONGEST_HINT_SECONDS))


def _last_verdict(state: tenacity.RetryCallState) -> Verdict:
    assert state.outcome is not None
    result: Verdict = state.outcome.result()
    return result


class _UnreadableTwice(tenacity.stop.stop_base):
    """Something that is not the facet's JSON is asked for once more, not oftener."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self._seen += isinstance(_last_verdict(retry_state), Unreadable)
        return self._seen > 1
