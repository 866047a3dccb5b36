"""Kills at random moments, a list that is edited meanwhile, signals: nothing lost, nothing doubled."""

import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox
from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import check_only_grew, published
from tests.support.commands import NO_LIMITS, start
from tests.support.output_checks import check_reconciled, failures, manifest, rows

CONNECTIONS = 5


def make_links(count: int, seed: str) -> list[str]:
    """Distinct bitlinks, a fifth of which the sandbox refuses."""
    kinds = ("missing", "gone", "ok", "ok", "ok", "ok", "ok", "ok", "ok", "ok")
    return [f"bit.ly/{kinds[i % len(kinds)]}-{seed}-{i}" for i in range(count)]


def make_lines(links: list[str], rng: random.Random) -> list[str]:
    """The links in disorder, in the forms people paste, a tenth of them doubled, some of those side by side."""
    lines = []
    for link in links:
        lines.append(rng.choice(("{}", "https://{}", "HTTP://{}/", '"{}"', "{}?utm=1\r")).format(link))
        if rng.random() < 0.05:
            lines.append(link)
    rng.shuffle(lines)
    return lines + rng.sample(links, len(links) // 20)


def end(process: subprocess.Popen[bytes], number: signal.Signals | None, after: float) -> int:
    """Send a run a signal after some seconds, if it has not ended before; give its exit code."""
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        if number is not None:
            process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert b"Traceback" not in err, err.decode()
    return process.returncode


def repeated(sandbox: Sandbox) -> int:
    """Count the definite answers that were not a link's first, once the server has sent what was on its way."""
    while sandbox.at_once:
        threading.Event().wait(0.005)
    return sandbox.answered.total() - len(sandbox.answered)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["out", "results.ndjson"])
@pytest.mark.parametrize(("kills", "count"), [(5, 1000), pytest.param(30, 5000, marks=pytest.mark.nightly)])
def test_a_storm_of_kills_costs_at_most_five_calls_each(
    tmp_path: Path, serve: Callable[..., Served], form: str, kills: int, count: int
) -> None:
    rng = random.Random(f"storm {form}")
    served = serve(latency_ms=25)
    links = make_links(count, "a")
    path, out = tmp_path / "links.txt", tmp_path / form
    path.write_text("\n".join(make_lines(links, rng)))
    arguments = [
        "run",
        str(path),
        "--out",
        str(out),
        "--base-url",
        served.url,
        *NO_LIMITS,
        "--part-rows",
        "700",
        "--size",
        "4",
        "--no-complete",  # each answer of a link but one is a repeated call
    ]
    gone: set[str] = set()
    # Attempts are counted in the output's own state: resumed with another budget, it still knows all of them.
    budgets = [tmp_path / "budget-1", tmp_path / "budget-2"]
    for kill in range(kills):
        process, seen = start(*arguments, "--state-dir", str(budgets[kill % 2])), published(out)
        if kill == kills // 2:
            # While it runs, because editors do not ask: the next invocation reads the new list.
            gone, links = set(links[:100]), links[100:] + make_links(200, "b")
            path.write_text("\r\n".join(make_lines(links, rng)))
        assert end(process, signal.SIGKILL, rng.uniform(0.05, 0.8)) == -signal.SIGKILL, "it ended before the storm did"
        # What a kill cuts off may be repeated by the next run or, if that is killed at once, by one after it.
        assert repeated(served.sandbox) <= CONNECTIONS * kill
        check_only_grew(seen, published(out))
    before = Counter(served.sandbox.answered)
    process = start(*arguments)
    while served.sandbox.answered.total() < before.total() + 200:
        threading.Event().wait(0.005)
    assert end(process, signal.SIGTERM, 0.0) == 5
    assert manifest(out)["stopped"]["reason"] == "signal"
    terminated, seen = Counter(served.sandbox.answered), published(out)
    assert end(start(*arguments), None, 120) == 0
    last = served.sandbox.answered - terminated
    assert not last.keys() & (terminated - before).keys(), "a call was repeated after SIGTERM"
    assert repeated(served.sandbox) <= CONNECTIONS * kills
    sent, counted = served.sandbox.requests.total(), manifest(out)["attempts"]["total"]
    assert sent <= counted <= sent + CONNECTIONS * kills
    check_only_grew(seen, published(out))
    settled = {row["bitlink"] for row in rows(out)} | {line["bitlink"] for line in failures(out)}
    assert set(links) <= settled <= set(links) | gone
    check_reconciled(out, settled)
    assert served.sandbox.too_many_connections == 0
