"""Kills while rows are refreshed: no answer is lost, none doubled, and at most the calls in flight are made again."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.bitly.query import Query
from harvester.verify.verify import output_at, verify
from harvester.worklist.refresh import RequestedRefresh
from tests.conftest import Served
from tests.crash.test_kill_storm import CONNECTIONS, end
from tests.support.commands import NO_LIMITS, start
from tests.support.in_process import harvest
from tests.support.output_checks import manifest, rows


@pytest.mark.slow
@pytest.mark.parametrize("form", ["out", "results.ndjson"])
@pytest.mark.parametrize(("kills", "count"), [(3, 300), pytest.param(20, 3000, marks=pytest.mark.nightly)])
async def test_a_killed_refresh_loses_and_doubles_no_answer(
    tmp_path: Path, serve: Callable[..., Served], form: str, kills: int, count: int
) -> None:
    served, out, rng = serve(latency_ms=5), tmp_path / form, random.Random(kills)
    query = Query("referrers", "day", -1, "2026-01-01T00:00:00Z", 50)
    names = [f"ok-{number}" for number in range(count)]
    begun = await harvest(served.url, tmp_path, names, query=query, out=str(out), refresh=RequestedRefresh(86400.0))
    assert begun.complete
    words = ("run", str(tmp_path / "links.txt"), "--out", str(out), "--refresh", "1d", "--base-url", served.url)
    for _ in range(kills):
        process = start(*words, *NO_LIMITS, "--part-rows", "50")
        end(process, signal.SIGKILL, rng.uniform(0.3, 0.9))
    assert end(start(*words, *NO_LIMITS, "--part-rows", "50"), None, 60.0) == 0
    found = rows(out)
    assert Counter(row["bitlink"] for row in found) == {f"bit.ly/{name}": 2 for name in names}
    assert len({row["record_id"] for row in found}) == len(found)
    assert manifest(out)["attempts"]["total"] <= 2 * count + kills * CONNECTIONS
    assert (manifest(out)["dataset"]["rows"], manifest(out)["dataset"]["refreshed"]) == (count, count)
    assert verify(output_at(str(out))).problems == []
