"""`--metrics-file`: what Prometheus' textfile collector finds, that it never stops a run, and the example alerts."""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harvester.dataset.manifest import Manifest, parse
from harvester.errors import UsageError
from harvester.reporting import prometheus as metrics_file
from harvester.reporting.prometheus import TextfileExporter
from tests.conftest import Served
from tests.e2e.test_status import STOPPED, WRITTEN
from tests.support.commands import NO_LIMITS, ROOT, harvester, start
from tests.support.promql import Sample, firing

UPDATED = datetime.fromisoformat(WRITTEN["updated"]).timestamp()
VERDICT = datetime.fromisoformat(WRITTEN["invocation"]["last_verdict"]).timestamp()
HOUR = 3600.0


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(40)) + "bit.ly/missing-a\n")
    return str(path)


def samples_in(path: Path) -> list[Sample]:
    families = text_string_to_metric_families(path.read_text())
    return [({**s.labels, "__name__": s.name}, s.value) for family in families for s in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    found = [number for has, number in samples if has["__name__"] == name and labels.items() <= has.items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def manifest_with(**changes: Any) -> Manifest:
    return parse(json.dumps(WRITTEN | changes).encode(), "_manifest.json")


def written(folder: Path, name: str = "run.prom", out: str = "out", **changes: Any) -> list[Sample]:
    """What a manifest, changed where the test says so, becomes."""
    warnings: list[str] = []
    asyncio.run(TextfileExporter(str(folder / name), out, warnings.append).export(manifest_with(**changes)))
    assert warnings == []
    return samples_in(folder / name)


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_runs_end_is_written_with_its_numbers(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    path, out = tmp_path / "mine.prom", tmp_path / "out"
    done = harvester(
        "run", links, "--out", str(out), "--metrics-file", str(path), "--base-url", serve().url, *NO_LIMITS
    )
    assert done.returncode == 0, done.stderr
    samples = samples_in(path)
    assert {labels["run"] for labels, _ in samples} == {"mine"}
    assert value(samples, "harvester_calls", state="rows") == 40
    assert value(samples, "harvester_calls", state="refused") == 1
    assert value(samples, "harvester_calls_left") == 0
    assert value(samples, "harvester_attempts_total") == 41
    assert value(samples, "harvester_complete") == 1
    assert value(samples, "harvester_info", out=str(out), facet="referrers") == 1
    assert value(samples, "harvester_published_rows_total") == 40
    part = next(out.glob("part-*"))
    assert value(samples, "harvester_published_bytes_total") == part.stat().st_size
    moments = ("started", "last_verdict", "ended", "updated")
    times = [value(samples, f"harvester_{moment}_timestamp_seconds") for moment in moments]
    assert times == sorted(times)
    assert times[0] > 0


def test_rows_on_standard_output_have_numbers_too(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    path = tmp_path / "filter.prom"
    done = harvester("run", links, "--out", "-", "--metrics-file", str(path), "--base-url", serve().url, *NO_LIMITS)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 40
    samples = samples_in(path)
    assert value(samples, "harvester_calls", state="rows") == 40
    assert value(samples, "harvester_ended_timestamp_seconds") > 0


def test_a_run_that_has_just_begun_is_written_and_a_kill_leaves_a_whole_file(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    path = tmp_path / "mine.prom"
    process = start(
        "run",
        links,
        "--out",
        str(tmp_path / "out"),
        "--metrics-file",
        str(path),
        "--base-url",
        serve(latency_ms=60_000).url,
        *NO_LIMITS,
    )
    while not path.exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert value(samples_in(path), "harvester_ended_timestamp_seconds") == 0


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_umask_gives_the_file_its_mode(
    tmp_path: Path, links: str, serve: Callable[..., Served], umask: int, mode: int
) -> None:
    path = tmp_path / "mine.prom"
    options = ("--out", str(tmp_path / "out"), "--metrics-file", str(path), "--base-url", serve().url, *NO_LIMITS)
    assert harvester("run", links, *options, umask=umask).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_that_cannot_be_written_any_more_is_said_once_and_the_run_goes_on(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    folder, out = tmp_path / "collected", tmp_path / "out"
    folder.mkdir()
    options = ("--metrics-file", str(folder / "mine.prom"), "--base-url", serve(latency_ms=100).url, *NO_LIMITS)
    process = start("run", links, "--out", str(out), "--part-rows", "5", *options)
    while not (folder / "mine.prom").exists():
        time.sleep(0.002)
    shutil.rmtree(folder)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count(b"warning: --metrics-file") == 1
    assert b"No such file or directory; the run continues" in err


# --- before a run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("metrics.txt", "must be a name such as harvester.prom"),
        (".prom", "must be a name such as harvester.prom"),
        ("nowhere/a.prom", "the folder"),
        ("folder.prom", "a folder"),
    ],
)
def test_a_path_that_will_not_do_is_refused_before_anything_is_asked(
    tmp_path: Path, links: str, serve: Callable[..., Served], path: str, message: str
) -> None:
    (tmp_path / "folder.prom").mkdir()
    served = serve()
    done = harvester(
        "run", links, "--out", "out", "--metrics-file", path, "--base-url", served.url, *NO_LIMITS, cwd=tmp_path
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not served.sandbox.requests
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UsageError, match="this user must be able to write to"):
        TextfileExporter(str(tmp_path / "a.prom"), "out", print)


def test_without_the_library_the_install_line_is_said(tmp_path: Path, links: str) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None\nfrom harvester.cli.main import main\nmain()"
    arguments = ["run", links, "--out", str(tmp_path / "out"), "--metrics-file", str(tmp_path / "a.prom")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BITLY_TOKEN": "any"},
    )
    assert done.returncode == 2
    assert "pip install 'bitly-harvester[metrics]'" in done.stderr


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_file_system_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, entered = threading.Event(), []

    def hang(path: str, content: bytes) -> None:
        entered.append(path)
        release.wait()

    monkeypatch.setattr(metrics_file, "_replace", hang)
    monkeypatch.setattr(metrics_file, "PATIENCE_SECONDS", 0.01)
    warnings: list[str] = []
    shown = TextfileExporter(str(tmp_path / "a.prom"), "out", warnings.append)
    asyncio.run(shown.export(manifest_with()))
    asyncio.run(shown.export(manifest_with()))
    release.set()
    assert len(entered) == len(warnings) == 1
    assert "it took too long" in warnings[0]


def test_its_temporary_file_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sources = os.replace, []

    def replace(source: str, target: str) -> None:
        sources.append(source)
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    written(tmp_path)
    assert len(sources) == 1
    assert Path(sources[0]).parent == tmp_path
    assert not sources[0].endswith(".prom")


def test_two_runs_never_have_a_series_in_common(tmp_path: Path) -> None:
    one, other = (written(tmp_path, name) for name in ("a.prom", "b.prom"))
    series = [{frozenset(labels.items()) for labels, _ in samples} for samples in (one, other)]
    assert not series[0] & series[1]


def test_names_of_any_form_come_through(tmp_path: Path) -> None:
    names = written(tmp_path, 'a "b" {c}.prom', out='x\\y\n"z"\udcff')
    info = next(labels for labels, _ in names if labels["__name__"] == "harvester_info")
    assert (info["run"], info["out"]) == ('a "b" {c}', 'x\\y\n"z"\ufffd')


def test_what_is_not_known_has_no_sample(tmp_path: Path) -> None:
    names = {
        (labels["__name__"], labels.get("window")) for labels, _ in written(tmp_path, remaining=None, stopped=None)
    }
    assert ("harvester_calls_left", None) not in names
    assert ("harvester_window_limit", "month") not in names
    assert ("harvester_window_used", "month") in names
    assert ("harvester_stopped", None) not in names


def test_the_table_of_the_document_is_what_is_written(tmp_path: Path) -> None:
    row = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| .+ \|$", re.MULTILINE)
    table = {
        name: (kind, frozenset(labels.replace(" ", "").split(",")))
        for name, kind, labels, _ in row.findall((ROOT / "docs/metrics.md").read_text())
    }
    written(tmp_path, stopped=STOPPED)
    found = {}
    for family in text_string_to_metric_families((tmp_path / "run.prom").read_text()):
        for sample in family.samples:
            found[sample.name] = (family.type, frozenset(sample.labels))
            assert family.documentation
    assert found == table


# --- alerts ---------------------------------------------------------------------------------------------------------

ALERTS = dict(re.findall(r"- alert: (\w+)\n +expr: \|\n((?: {10}.*\n)+)", (ROOT / "docs/alerts.yml").read_text()))
NOT_WAITING = WRITTEN["budget"] | {"limited_by": None}
IDLE = WRITTEN["invocation"] | {"last_verdict": None, "started": "2026-11-23T13:00:00Z"}


def waiting_for(window: str, until: str | None = "2026-11-23T15:20:00Z") -> dict[str, Any]:
    return {
        **WRITTEN["budget"],
        "limited_by": {"window": window, "limit": None, "until": until, "since": None, "why": None},
    }


def at(hours: float) -> dict[str, str]:
    """Numbers that are written so many hours after the last verdict."""
    return {"updated": datetime.fromtimestamp(VERDICT + hours * HOUR).astimezone().isoformat()}


def alerts(folder: Path, now: float, **changes: Any) -> set[str]:
    samples = written(folder, **changes)
    return {name for name, expression in ALERTS.items() if firing(expression, samples, now)}


STUCK, SILENT, GAVE_UP = {"HarvesterStuck"}, {"HarvesterSilent"}, {"HarvesterStopped"}


def test_there_are_three_alerts() -> None:
    assert ALERTS.keys() == STUCK | SILENT | GAVE_UP


@pytest.mark.parametrize(
    ("hours", "changes", "expected"),
    [
        (0.1, {"budget": NOT_WAITING}, set()),
        (0.9, {"budget": NOT_WAITING}, set()),
        (1.1, {"budget": NOT_WAITING}, STUCK),
        (1.1, {"budget": waiting_for("hour")}, set()),
        (1.1, {"budget": waiting_for("minute")}, set()),
        (1.1, {"budget": waiting_for("throttled")}, set()),
        (1.1, {"budget": waiting_for("month")}, set()),
        (1.1, {"budget": waiting_for("hour", "2026-11-23T14:30:00Z")}, STUCK),  # that is over, and nothing moves
        (1.1, {"budget": waiting_for("hour", None)}, STUCK),
        (1.1, {"budget": waiting_for("outage")}, STUCK),
        (1.1, {"budget": waiting_for("connections", None)}, STUCK),
        (0.1, {"budget": NOT_WAITING, "invocation": IDLE}, STUCK),
        (0.1, {"budget": NOT_WAITING, "invocation": IDLE | {"started": WRITTEN["updated"]}}, set()),
        (9.0, {"budget": NOT_WAITING, "ended": "2026-11-23T14:05:00Z"}, set()),
        (9.0, {"ended": "2026-11-23T14:05:00Z", "stopped": STOPPED}, set()),
        (9.0, {"ended": "2026-11-23T14:05:00Z", "stopped": STOPPED | {"reason": "token_refused"}}, GAVE_UP),
    ],
)
def test_an_alert_fires_when_nothing_explains_that_nothing_moves(
    tmp_path: Path, hours: float, changes: dict[str, Any], expected: set[str]
) -> None:
    assert alerts(tmp_path, VERDICT + hours * HOUR + 30, **at(hours), **changes) == expected


def test_a_killed_run_is_silent_whatever_it_waited_for(tmp_path: Path) -> None:
    for budget in (NOT_WAITING, waiting_for("hour")):
        assert alerts(tmp_path, UPDATED + 400, budget=budget) == SILENT
        assert alerts(tmp_path, UPDATED + 5 * HOUR, budget=budget) == SILENT
