"""A full answer is asked for once more with a larger size, and is never lost by that."""

from types import SimpleNamespace
from typing import Any

import pytest

from harvester.bitly.query import Query
from harvester.bitly.verdicts import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    Throttled,
    TokenRefused,
    Transient,
    Unknown,
    Unreadable,
    Verdict,
)
from harvester.client.completion import Completion
from harvester.errors import RunStopping

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 2)


def answer(metrics: int, larger_size: int | None = None) -> Answer:
    listed = [{"value": str(number), "clicks": 1} for number in range(metrics)]
    return Answer(listed, metrics, None, None, larger_size=larger_size)


class Rig:
    """A completion whose attempts get these verdicts in turn; RunStopping is raised."""

    def __init__(self, *script: Any, query: Query = QUERY, max_size: int | None = 1000) -> None:
        self.script, self.sent, self.slept = list(script), list[str](), list[float]()
        self.retried = 0
        shutdown: Any = SimpleNamespace(sleep_unless_stopping=self._sleep)
        self.completion = Completion(self._send, shutdown, query, max_size, attempts=3, backoff_seconds=1.0)

    async def _send(self, _: str, query: Query, again: bool) -> Verdict | None:
        self.sent.append(query.parameters)
        self.retried += again
        found = self.script.pop(0)
        if found is RunStopping:
            raise RunStopping
        assert found is None or not isinstance(found, str)
        return found

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize(
    ("verdict", "due"), [(answer(1), False), (answer(2), True), (answer(3), False), (Refused(404, ""), False)]
)
def test_an_answer_with_as_many_metrics_as_requested_is_due(verdict: Verdict, due: bool) -> None:
    assert Rig().completion.is_due(verdict) is due


@pytest.mark.parametrize("max_size", [None, 1, 2])
def test_no_larger_size_is_no_second_request(max_size: int | None) -> None:
    assert not Rig(max_size=max_size).completion.is_due(answer(2))


def test_a_facet_without_a_size_is_never_due() -> None:
    query = Query("clicks", "day", -1, "2026-11-23T06:00:00Z", None)
    assert not Rig(query=query).completion.is_due(answer(0))
    assert not Rig(query=query).completion.is_due(answer(1000))


@pytest.mark.parametrize("metrics", [2, 7, 1000])
async def test_the_answer_to_the_larger_size_takes_the_first_ones_place(metrics: int) -> None:
    rig = Rig(None, answer(metrics))
    assert await rig.completion.of("bit.ly/a", answer(2)) == answer(metrics, larger_size=1000)
    assert [each.rpartition("&")[2] for each in rig.sent] == ["size=1000"] * 2
    assert rig.retried == 0


@pytest.mark.parametrize(
    "refusal",
    [ParameterRefused(400, "INVALID_ARG_SIZE", "size"), Unknown(400, "", ""), Refused(403, ""), PlanRefused(402, "")],
)
async def test_a_size_that_is_refused_is_not_tried_again(refusal: Verdict) -> None:
    rig = Rig(refusal)
    assert await rig.completion.of("bit.ly/a", answer(2)) == answer(2)
    assert not rig.completion.is_due(answer(2))
    assert await rig.completion.of("bit.ly/b", answer(2)) == answer(2)
    assert len(rig.sent) == 1


@pytest.mark.parametrize("end", [TokenRefused(401, ""), MonthSpent(429, ""), Unreadable(200, "", ""), RunStopping])
async def test_what_says_nothing_of_the_size_leaves_the_first_answer_and_the_next_link_is_asked(end: Any) -> None:
    rig = Rig(end)
    assert await rig.completion.of("bit.ly/a", answer(2)) == answer(2)
    assert rig.completion.is_due(answer(2))
    assert rig.slept == []


async def test_a_failure_that_may_pass_is_tried_again_and_not_for_ever() -> None:
    failed = Transient(503, "")
    rig = Rig(failed, Throttled(429, ""), answer(3))
    assert await rig.completion.of("bit.ly/a", answer(2)) == answer(3, larger_size=1000)
    assert (rig.slept, rig.retried) == ([1.0], 2)
    rig = Rig(failed, failed, failed)
    assert await rig.completion.of("bit.ly/a", answer(2)) == answer(2)
    assert rig.slept == [1.0, 2.0, 4.0]
    assert rig.completion.is_due(answer(2))
