"""docs/loading.md and docs/orchestration.md, as far as they can be tried here: their statements and scripts are run."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import duckdb
import pytest
import sqlglot

import harvester
from harvester.cli.exit_codes import EXIT_CODES
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from harvester.rows.schema_export import Target, schema_for
from harvester.sandbox import metrics_for
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN, environment
from tests.support.scripted_bitly import scripted

LOADING = (ROOT / "docs" / "loading.md").read_text()
ORCHESTRATION = (ROOT / "docs" / "orchestration.md").read_text()
README = (ROOT / "README.md").read_text()
NAMES = [f"bit.ly/{i}" for i in range(12)]
DAY = "2026-11-23"


def section(page: str, name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- loading --------------------------------------------------------------------------------------------------------


async def harvested(served: Served, shape: Shape, form: Format) -> None:
    given: Any = {"token": TOKEN, "base_url": served.url, "per_minute": 0, "per_hour": 0, "per_month": 0}
    out = "lake/{facet}/dt={dt}"
    for day in (DAY, "2026-11-24"):
        links = [*NAMES, "bit.ly/missing"]
        await harvester.harvest(links, out=out, unit_reference=day, part_rows=5, shape=shape, format=form, **given)


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", list(Shape))
async def test_the_duckdb_recipe_loads_every_row_once_however_often_it_is_run(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, shape: Shape, form: Format
) -> None:
    monkeypatch.chdir(tmp_path)
    await harvested(serve(), shape, form)
    assert Path(f"lake/referrers/dt={DAY}/_failures.ndjson").stat().st_size > 0
    page = section(LOADING, "DuckDB")
    (merge,) = blocks(page, "sql")
    (busiest,) = blocks(page, f"sql {shape}")
    clicks: Counter[str] = Counter()
    for name in NAMES * 2:
        clicks.update({each["value"]: each["clicks"] for each in metrics_for(name, "referrers", 50)["metrics"]})
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, shape, form))
        for _ in range(2):
            database.execute(merge.replace(".ndjson.gz", f".{form}"))
            calls = database.execute("SELECT count(DISTINCT (bitlink, unit_reference)) FROM bitly_metrics").fetchall()
            assert calls == [(24,)]
            ranked = sorted(clicks.items(), key=lambda item: (-item[1], item[0]))[:10]
            assert database.execute(busiest).fetchall() == ranked


async def test_the_merge_takes_the_later_answer_of_a_call(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await harvested(serve(), Shape.NESTED, Format.GZIP)
    (merge,) = blocks(section(LOADING, "DuckDB"), "sql")
    changed = "SELECT count(*) FROM bitly_metrics WHERE clicks_listed = -1"
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Shape.NESTED, Format.GZIP))
        for moment, left in (("2020-01-01", 0), ("2100-01-01", 24)):
            database.execute(merge)
            database.execute(f"UPDATE bitly_metrics SET fetched_at = '{moment}T00:00:00Z', clicks_listed = -1")
            database.execute(merge)
            assert database.execute(changed).fetchall() == [(left,)]


def test_every_target_of_the_schema_has_its_place_in_the_page() -> None:
    assert set(re.findall(r"harvester schema --for ([a-z-]+)", LOADING)) == {target.value for target in Target}


def test_every_format_and_shape_is_in_both_tables_of_formats() -> None:
    for page in (LOADING, README):
        rows = re.findall(r"^\| `([a-z.]+)` \|", page, re.MULTILINE)
        assert {form.value for form in Format} <= set(rows)
        assert all(re.search(rf"`(--shape )?{shape}`", page) for shape in Shape)


def test_statements_for_snowflake_are_read_by_a_parser_of_its_dialect() -> None:
    (query,) = blocks(section(LOADING, "Snowflake"), "sql")
    (parsed,) = sqlglot.parse(query, read="snowflake")
    assert parsed is not None
    assert {table.name for table in parsed.find_all(sqlglot.exp.Table)} >= {"bitly_metrics"}


def test_what_was_not_tried_says_so() -> None:
    for name in ("BigQuery", "Snowflake", "Athena"):
        assert section(LOADING, name).lstrip().startswith("**Not tried here**")
    for name in ("DuckDB", "Spark"):
        assert section(LOADING, name).lstrip().startswith("Tried")


def test_python_in_the_pages_compiles() -> None:
    found = [block for page in (LOADING, ORCHESTRATION) for block in blocks(page, "python")]
    assert len(found) == 2
    for block in found:
        compile(block, "page", "exec")


# --- orchestration --------------------------------------------------------------------------------------------------

FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
read -r code < "$CODE"
[ "$code" = 0 ] && touch "$4/_SUCCESS"
exit "$code"
"""


class Cron:
    """The page's script, with a harvester that does nothing but end as it is told."""

    def __init__(self, folder: Path, day: str | None = DAY) -> None:
        (script,) = blocks(section(ORCHESTRATION, "cron"), "sh")
        self.lake, self._script, self._calls = folder / "lake", folder / "harvest.sh", folder / "calls"
        self._code, self._bin = folder / "code", folder / "bin"
        self._script.write_text(script)
        self._bin.mkdir()
        if day is not None:
            self.add("date", f"#!/bin/sh\necho {day}\n")

    def add(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def run(self, code: int | None = None, **env: str) -> int:
        if code is not None:
            self.add("harvester", FAKE)
            self._code.write_text(f"{code}\n")
        own = {"LAKE": str(self.lake), "CALLS": str(self._calls), "CODE": str(self._code), **env}
        path = f"{self._bin}:{os.environ['PATH']}"
        done = subprocess.run(["sh", self._script], env=environment({**own, "PATH": path}), check=False, timeout=60)
        return done.returncode

    def days(self) -> list[str]:
        """The days that harvester was called for, in their order."""
        return re.findall(r"--unit-reference (\S+)", self._calls.read_text()) if self._calls.exists() else []


@pytest.mark.parametrize("code", EXIT_CODES)
def test_the_cron_script_repeats_what_is_to_be_repeated_and_nothing_else(tmp_path: Path, code: int) -> None:
    cron = Cron(tmp_path)
    assert cron.run(code) == (0 if code in {0, 3, 9} else code)
    assert cron.run(code) == (code if code in {5, 7} else 0)
    assert cron.days() == [DAY] * (2 if code in {3, 5, 7, 9} else 1)
    assert (cron.lake / "_stopped").exists() == (code in {1, 2, 4, 6, 8})


def test_the_cron_script_goes_on_when_the_cause_is_mended(tmp_path: Path) -> None:
    cron = Cron(tmp_path)
    assert cron.run(6) == 6
    (cron.lake / "_stopped").unlink()
    assert cron.run(0) == 0
    assert cron.days() == [DAY, DAY]


def test_the_cron_script_carries_on_the_oldest_day_first_and_leaves_complete_ones(tmp_path: Path) -> None:
    cron = Cron(tmp_path)
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        (cron.lake / f"dt={day}").mkdir(parents=True)
    (cron.lake / "dt=2026-11-21" / "_SUCCESS").touch()
    assert cron.run(3) == 0
    assert cron.days() == ["2026-11-20", "2026-11-22", DAY]
    assert cron.run(7) == 7
    assert cron.days()[3:] == ["2026-11-20"]


def test_the_cron_script_goes_no_further_than_the_bound_that_was_set(tmp_path: Path) -> None:
    """Each later day would otherwise make as many calls again."""
    cron = Cron(tmp_path)
    (cron.lake / "dt=2026-11-20").mkdir(parents=True)
    for _ in range(2):
        assert cron.run(9) == 0
    assert cron.days() == ["2026-11-20"] * 2


def test_the_cron_script_works_with_harvester_itself(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, cron = serve(), Cron(tmp_path)
    cron.add("harvester", f'#!/bin/sh\nexec {sys.executable} -m harvester "$@"\n')
    (tmp_path / "links.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for _ in range(2):
        assert cron.run(HARVESTER_BASE_URL=served.url, LIST=str(tmp_path / "links.txt")) == 0
    assert (cron.lake / f"dt={DAY}" / "_SUCCESS").exists()
    assert served.sandbox.requests == Counter(NAMES)


def test_the_table_of_exit_codes_has_each_once() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", ORCHESTRATION, re.MULTILINE)
    assert sorted(int(code) for row in rows for code in row.split(",")) == sorted(EXIT_CODES)


class Failed(Exception):
    """Airflow's AirflowFailException: no more tries."""


class Repeated(Exception):
    """Airflow's AirflowException: the task is tried again."""


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The page's DAG, with just as much of Airflow as it uses."""
    found = SimpleNamespace(task=None, options={}, days=[])

    def task(**options: Any) -> Callable[[Any], Any]:
        def decorate(work: Any) -> Any:
            found.task, found.options = work, options
            return found.days.append

        return decorate

    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")
    vars(sdk).update(dag=lambda **_: lambda make: make, task=task)
    vars(exceptions).update(AirflowException=Repeated, AirflowFailException=Failed)
    for module in (ModuleType("airflow"), sdk, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (code,) = blocks(section(ORCHESTRATION, "Airflow"), "python")
    exec(compile(code, "dag.py", "exec"), {"__name__": "dag"})
    return found


def put_command(folder: Path, code: int, calls: int = 1) -> None:
    """Put a harvester there whose runs end with a code, and whose status has so many calls in the last run."""
    status = json.dumps({"invocation": {"calls": calls}})
    (folder / "harvester").write_text(
        f"#!/bin/sh\n[ $1 = status ] && echo '{status}' && exit\necho \"$@\" > '{folder}/words'\nexit {code}\n"
    )
    (folder / "harvester").chmod(0o755)


@pytest.mark.parametrize("code", EXIT_CODES)
def test_the_airflow_task_repeats_what_is_to_be_repeated_and_nothing_else(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    put_command(tmp_path, code)
    expected = {0: None, 3: Repeated, 5: Repeated, 7: Repeated}.get(code, Failed)
    assert dag.days == ["{{ ds }}"]
    if expected is None:
        dag.task(DAY)
    else:
        with pytest.raises(expected):
            dag.task(DAY)
    words = (tmp_path / "words").read_text().split()
    assert words[-3:] == ["--allow-empty", "--unit-reference", DAY]
    assert words[words.index("--out") + 1].endswith("{facet}/dt={dt}")


@pytest.mark.parametrize("others", [(), (5, 5, 5, 5), (7,) * 60, (5, 7, 3, 5, 3)])
def test_the_airflow_task_gives_up_what_failed_by_calls_and_not_by_tries(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...]
) -> None:
    """However often it was tried before, and with whatever end."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for code in (*others, 3):
        put_command(tmp_path, code, calls=1)
        with pytest.raises(Repeated):
            dag.task(DAY)
    put_command(tmp_path, 3, calls=0)
    with pytest.raises(Failed, match="_failures"):
        dag.task(DAY)


def test_the_airflow_task_stops_at_a_bound_and_says_how_to_go_on(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    put_command(tmp_path, 9)
    with pytest.raises(Failed, match="clear the task to go on"):
        dag.task(DAY)


def test_the_airflow_task_works_with_harvester_itself(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One link fails in each run: three of them ask for it, the fourth does not, and is the last."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    words = f'$(echo "$@" | sed "s,/srv/,{tmp_path}/,g")'
    (tmp_path / "harvester").write_text(f"#!/bin/sh\nexec {sys.executable} -m harvester {words}\n")
    (tmp_path / "harvester").chmod(0o755)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "links.txt").write_text("bit.ly/ok\nbit.ly/503\n")
    with scripted() as bitly:
        monkeypatch.setenv("HARVESTER_BASE_URL", bitly.url)
        monkeypatch.setenv("HARVESTER_ATTEMPTS", "1")
        for number in range(1, 4):
            with pytest.raises(Repeated, match="exit code 3"):
                dag.task(DAY)
            assert len(bitly.visits("503")) == number
        with pytest.raises(Failed, match="_failures"):
            dag.task(DAY)
        assert len(bitly.visits("503")) == 3


def test_a_day_without_links_is_done_in_the_recipes(
    dag: SimpleNamespace, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cron it does not keep the days after it from being harvested."""
    url, cron = serve().url, Cron(tmp_path)
    words = f'$(echo "$@" | sed "s,/srv/,{tmp_path}/,g")'
    cron.add("harvester", f"#!/bin/sh\nexec {sys.executable} -m harvester {words}\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "links.txt").touch()
    (cron.lake / "dt=2026-11-20").mkdir(parents=True)
    assert cron.run(HARVESTER_BASE_URL=url, LIST=str(tmp_path / "lists" / "links.txt")) == 0
    for day in ("2026-11-20", DAY):
        assert (cron.lake / f"dt={day}" / "_SUCCESS").exists()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HARVESTER_BASE_URL", url)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    dag.task(DAY)
    assert (tmp_path / "lake" / "referrers" / f"dt={DAY}" / "_SUCCESS").exists()


def test_the_airflow_tasks_tries_outlast_a_year(dag: SimpleNamespace) -> None:
    wait, waited = dag.options["retry_delay"], dag.options["retry_delay"] * 0
    for _ in range(dag.options["retries"]):
        waited += wait
        wait = min(wait * 2, dag.options["max_retry_delay"])
    assert waited.days > 365
    # Airflow doubles the wait with each try, as a float.
    assert wait.total_seconds() * 2.0 ** dag.options["retries"] < float("inf")


def test_the_airflow_task_ends_its_command_in_good_order(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow ends a task by an exception in it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    os.mkfifo(tmp_path / "started")
    (tmp_path / "harvester").write_text(
        f"""#!{sys.executable}
import json, pathlib, signal, sys
def end(number, frame):
    pathlib.Path({str(tmp_path / "ended")!r}).write_text(json.dumps(number))
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
open({str(tmp_path / "started")!r}, "w").close()
signal.pause()
"""
    )
    (tmp_path / "harvester").chmod(0o755)

    class Ended(Exception):
        pass

    def wait(process: Any, timeout: float | None = None) -> int:
        if timeout is None:
            with (tmp_path / "started").open():
                raise Ended
        found: int = real_wait(process, timeout)
        return found

    real_wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(Ended):
        dag.task(DAY)
    assert json.loads((tmp_path / "ended").read_text()) == 15
