"""A real Spark: two workers on loopback, whose executors are killed. Needs the extra `spark` and Java."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harvester.errors import UsageError
from harvester.spark import harvest_dataframe
from tests.support.commands import NO_LIMITS, ROOT, STATE_DIR, TOKEN, harvester
from tests.support.output_checks import rows
from tests.support.scripted_bitly import Scripted, scripted

REQUIRED = os.environ.get("SPARK_TESTS") == "required"
"""Set where a missing Spark is a failure, and no reason to skip."""
CONNECTIONS = 5
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    if not REQUIRED and shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install default-jre-headless")
    pyspark = __import__("pyspark.sql") if REQUIRED else pytest.importorskip("pyspark.sql", reason="needs pyspark")
    sql = sys.modules["pyspark.sql"]
    assert pyspark
    environment = {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        builder = sql.SparkSession.builder.master("local-cluster[2,1,512]")
        for name, value in {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executor.memory": "512m",
            "spark.sql.shuffle.partitions": "2",
        }.items():
            builder = builder.config(name, value)
        found = builder.getOrCreate()
        yield found
        found.stop()


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def frame(session: Any, links: list[str]) -> Any:
    return session.createDataFrame([(link, "A") for link in links], "link string, team string")


def options(folder: Path, bitly: Scripted) -> dict[str, Any]:
    limits = {"per_minute": 0, "per_hour": 0, "per_month": 0}
    return {"base_url": bitly.url, "state_dir": str(folder / "state"), "tasks": 2, "token": TOKEN, **limits}


def _kill_a_worker(bitly: Scripted, calls: int) -> None:
    """Kill a Python worker that has connections to Bitly, once some calls were made."""
    port = int(bitly.url.split(":")[2].split("/")[0])
    while True:
        if len(bitly.requests) >= calls:
            for process in psutil.process_iter(["name"]):
                try:
                    peers = [each.raddr.port for each in process.net_connections("tcp") if each.raddr]
                except psutil.Error:
                    continue
                if port in peers and process.pid != os.getpid():
                    os.kill(process.pid, signal.SIGKILL)
                    return
        time.sleep(0.01)


def test_a_killed_worker_costs_what_was_in_flight_and_what_is_there_costs_nothing(
    session: Any, bitly: Scripted, tmp_path: Path
) -> None:
    links, out = [f"bit.ly/ok--{number}" for number in range(2000)], tmp_path / "out"
    killer = Thread(target=_kill_a_worker, args=(bitly, 300), daemon=True)
    killer.start()
    found = harvest_dataframe(
        frame(session, [*links, *links[:10]]), out, column="link", carry=["team"], **options(tmp_path, bitly)
    )
    assert (found["stopped"], found["complete"]) == (None, True)
    killer.join(1)
    assert not killer.is_alive()
    assert Counter(row["bitlink"] for row in rows(out)) == Counter(links)
    assert {row["carried"]["team"] for row in rows(out)} == {"A"}
    repeated = len(bitly.requests) - len(links)
    print(f"a killed worker: {repeated} calls repeated")
    assert repeated <= CONNECTIONS
    assert harvester("verify", str(out)).returncode == 0
    before = len(bitly.requests)
    more = [f"bit.ly/ok--more-{number}" for number in range(500)]
    assert harvest_dataframe(frame(session, links), out, column="link", **options(tmp_path, bitly))["complete"]
    assert len(bitly.requests) == before
    assert harvest_dataframe(frame(session, [*links, *more]), out, column="link", **options(tmp_path, bitly))[
        "complete"
    ]
    assert len(bitly.requests) == before + 500


def test_a_task_that_fails_once_is_made_again(session: Any, bitly: Scripted, tmp_path: Path) -> None:
    links, out, failed = [f"bit.ly/ok--{number}" for number in range(200)], tmp_path / "out", tmp_path / "failed"

    def token() -> str:
        from pyspark import TaskContext  # noqa: PLC0415 - it runs in a task

        if TaskContext.get() is not None and not failed.exists():
            failed.touch()
            os._exit(1)
        return TOKEN

    given = options(tmp_path, bitly) | {"token": token}
    assert harvest_dataframe(frame(session, links), out, column="link", **given)["complete"]
    assert failed.exists()
    assert Counter(seen.back_half for seen in bitly.requests) == Counter(link.split("/")[1] for link in links)
    assert harvester("verify", str(out)).returncode == 0


def test_the_command_makes_its_calls_in_the_cluster(bitly: Scripted, tmp_path: Path, session: Any) -> None:
    assert session is not None  # Spark is there
    links, out, script = tmp_path / "links.txt", tmp_path / "out", tmp_path / "harvest.py"
    links.write_text("\n".join(f"bit.ly/ok--{number}" for number in range(40)))
    script.write_text("from harvester.cli.main import main\nmain()\n")
    words = ["run", links, "--out", out, "--engine", "spark", "--tasks", "2", "--base-url", bitly.url, *NO_LIMITS]
    submit = Path(sys.executable).with_name("spark-submit")
    done = subprocess.run(
        [submit, "--master", "local[2]", "--conf", "spark.ui.enabled=false", script, *map(str, words)],
        env={**os.environ, "BITLY_TOKEN": TOKEN, STATE_DIR: str(tmp_path / "state")},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(rows(out)) == len(bitly.requests) == 40


def test_what_no_job_can_be_made_of_is_refused_before_a_call(session: Any, bitly: Scripted, tmp_path: Path) -> None:
    given, df = options(tmp_path, bitly), frame(session, ["bit.ly/ok"])
    with pytest.raises(UsageError, match="has none named url; it has link, team"):
        harvest_dataframe(df, tmp_path / "out", column="url", **given)
    with pytest.raises(UsageError, match="name one, and call"):
        harvest_dataframe(df, tmp_path / "{facet}", column="link", facet="referrers,countries", **given)
    for name, value, error in [
        ("spark.speculation", "true", "Spark would make calls twice"),
        ("spark.master", "spark://elsewhere:7077", "--budget: is needed on a cluster"),
    ]:
        other = SimpleNamespace(columns=df.columns, sparkSession=SimpleNamespace(conf={name: value}))
        with pytest.raises(UsageError, match=error):
            harvest_dataframe(other, tmp_path / "out", column="link", **given)
    assert not bitly.requests
