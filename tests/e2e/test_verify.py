"""`harvester verify`: 0 only if parts, rows, counts and failures hold; else 8, with the file and the line."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from harvester.api import harvest
from harvester.bitly.query import Query
from harvester.dataset.journal import PartLimits
from harvester.dataset.opening import open_dataset
from harvester.errors import OutputError, UsageError
from harvester.rows.encode import Format, flattened
from harvester.rows.schema import Shape
from harvester.sandbox import Sandbox, SandboxOptions, serving
from harvester.storage.folders import resolve
from harvester.storage.storage import LocalStorage
from harvester.verify import verify as verifying
from harvester.verify.duplicates import DuplicateFinder
from harvester.verify.findings import MOST_PROBLEMS, Findings, as_text
from harvester.verify.row_checks import Nested
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, start
from tests.support.committing import keep
from tests.support.in_process import command
from tests.support.output_checks import content, public
from tests.support.s3_server import Case
from tests.support.servers import in_thread
from tests.unit.dataset.test_recovery import settle

MISSING = (
    "missing, with {rows} rows; restore it, use --allow-moved if a loader has taken it, or fetch its links again "
    "(`harvester repair {out} --ask-again` says at what cost)"
)

NAMES = [f"bit.ly/{number}" for number in range(45)] + ["bit.ly/missing-1", "nonsense"]
FORMS = [(form, shape) for form in Format for shape in Shape]
GROWING = "results.ndjson"
NOBODY = 65534
NO_LIMIT: Any = {"token": TOKEN, "per_minute": 0, "per_hour": 0, "per_month": 0}
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str, str], Path]]:
    """Harvest an output of a form, once."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "links.txt").write_text("\n".join(NAMES))
    calm = SandboxOptions(per_minute=0, per_hour=0, per_month=0, latency_ms=0, errors=0.0)
    with in_thread(serving(Sandbox(calm))) as url:

        def make(name: str, form: str, shape: str) -> Path:
            out = folder / f"{form}-{shape}" / name
            if not public(out).exists() and not out.exists():
                given: Any = {} if name == GROWING else {"format": form, "shape": shape, "part_rows": 20}
                given |= {"base_url": url, "state_dir": folder / "state", **NO_LIMIT}
                assert asyncio.run(harvest(folder / "links.txt", out=out, **given))["complete"]
            return out

        yield make


@pytest.fixture
def made(tmp_path: Path, kept: Callable[[str, str, str], Path]) -> Made:
    """Copy a harvested output, to be spoiled."""

    def make(name: str = "out", form: str = "ndjson", shape: str = "nested") -> Path:
        shutil.copytree(kept(name, form, shape).parent, tmp_path / "copy")
        return tmp_path / "copy" / name

    return make


def verify(out: Path, work_dir: Path | None = None, *, allow_moved: bool = False) -> Findings:
    output = verifying.output_at(str(out), str(work_dir) if work_dir else None)
    return verifying.verify(output, allow_moved=allow_moved)


def problems(out: Path) -> list[str]:
    """What does not hold, with bare file names."""
    return [f"{os.path.basename(p.file)}{f':{p.line}' if p.line else ''}: {p.text}" for p in verify(out).problems]


def part_of(out: Path, number: int = 0) -> Path:
    return sorted(out.glob("part-*"))[number]


def rewrite(out: Path, change: Callable[[list[bytes]], list[bytes]], number: int = 0) -> None:
    """Change a part's lines, and let manifest and ledger know the new bytes, so that only the rows tell."""
    part = part_of(out, number)
    lines = change(content(part).splitlines(keepends=True))
    data = b"".join(lines)
    data = gzip.compress(data) if part.suffix == ".gz" else data
    part.write_bytes(data)
    entry = {"rows": len(lines), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(out, lambda manifest: next(p for p in manifest["parts"] if p["path"] == part.name).update(entry))
    shutil.rmtree(out / "_harvester")


def edit_manifest(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = public(out) / "_manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def edited(**changes: Any) -> Callable[[list[bytes]], list[bytes]]:
    """Change the third row."""

    def change(lines: list[bytes]) -> list[bytes]:
        lines[2] = orjson.dumps({**orjson.loads(lines[2]), **changes}) + b"\n"
        return lines

    return change


# --- what holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "shape"), FORMS)
def test_what_a_run_has_published_holds(made: Made, form: str, shape: str) -> None:
    out = made("out", form, shape)
    found = verify(out)
    assert as_text(found).splitlines()[-1] == (
        f"OK: the run is complete; {found.rows} of {found.rows} published rows are here"
    )
    assert (found.calls, found.failures, found.ledger_checked, found.ended) == (45, 2, True, True)
    assert found.parts == len(list(out.glob("part-*"))) >= 3
    assert found.rows == sum(part["rows"] for part in orjson.loads((out / "_manifest.json").read_bytes())["parts"])
    assert (found.remarks, found.not_checked, found.moved_away) == ([], [], [])


def test_the_command_says_what_it_has_read_and_exits_with_0(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made("out", "ndjson.gz", "nested")
    done = command(capsys, "verify", str(out))
    assert done.code == 0, done.err
    size = sum(part.stat().st_size for part in out.glob("part-*"))
    assert done.out == (
        f"{out}: read 3 files, {size:,} bytes, 45 rows of 45 calls, 2 lines of _failures.ndjson; "
        "compared with the ledger\n"
        "OK: the run is complete; 45 of 45 published rows are here\n"
    )


def test_the_command_says_what_does_not_hold_and_exits_with_8(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made()
    part = part_of(out)
    part.write_bytes(part.read_bytes().replace(b'"clicks_listed":', b'"clicks_listed":1', 1))
    done = command(capsys, "verify", str(out))
    assert done.code == 8
    assert done.out.startswith(f"{part}:1: clicks_listed is 1")
    told = json.loads(command(capsys, "verify", str(out), "--json").out)
    assert told["ok"] is False
    assert told["problem_count"] == len(told["problems"]) == 2
    assert told["problems"][0]["file"] == str(part)
    assert told["problems"][0]["line"] == 1
    assert told["problems"][1]["line"] is None


def test_a_closed_pipe_does_not_change_the_exit_code(made: Made) -> None:
    out = made()
    part_of(out).write_bytes(b"")
    reading, writing = os.pipe()
    process = start("verify", str(out), stdout=writing)
    for descriptor in (reading, writing):
        os.close(descriptor)
    assert process.communicate()[1] == b""
    assert process.returncode == 8


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system has no such names")
def test_a_folder_whose_name_is_not_utf_8_is_verified(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made()
    odd = str(out.rename(out.with_name(os.fsdecode(b"o\xfft"))))
    told = json.loads(command(capsys, "verify", odd, "--json").out)
    assert (told["ok"], told["ledger_checked"], told["out"]) == (True, True, str(out.with_name("o\\udcfft")))
    assert json.loads(command(capsys, "status", odd, "--json").out)["state"] == "complete"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.ndjson", "."])
def test_where_nothing_was_begun_there_is_nothing_to_verify(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^nothing to verify at "):
        verify(tmp_path / name)


def test_rows_on_standard_output_cannot_be_verified() -> None:
    with pytest.raises(UsageError, match="standard output"):
        verifying.output_at("-")


def test_a_part_that_is_missing_is_a_problem_unless_a_loader_may_take_parts_away(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made()
    part = part_of(out, 1)
    rows = len(content(part).splitlines())
    part.unlink()
    done = command(capsys, "verify", str(out))
    assert done.code == 8
    assert done.out.splitlines()[0] == f"{part}: {MISSING.format(rows=rows, out=out)}"
    assert done.out.splitlines()[-1] == f"FAILED: 1 problem; {45 - rows} of 45 published rows are here"
    told = json.loads(command(capsys, "verify", str(out), "--json").out)
    assert (told["ok"], told["rows"], told["published_rows"]) == (False, 45 - rows, 45)
    done = command(capsys, "verify", str(out), "--allow-moved")
    assert done.code == 0
    assert done.out.splitlines()[0] == f"moved away, not read: {part}"
    assert done.out.splitlines()[-1] == (
        f"OK: the run is complete; {45 - rows} of 45 published rows are here (parts were moved away)"
    )
    assert verify(out, allow_moved=True).moved_away == [str(part)]


def test_a_missing_part_that_only_the_ledger_knows_is_a_problem(made: Made) -> None:
    """A run that was killed has published it after its last manifest."""
    out = made()
    part = part_of(out, 2)
    rows = len(content(part).splitlines())

    def older(manifest: dict[str, Any]) -> None:
        del manifest["parts"][2]
        manifest.update(ended=None, complete=False)
        manifest["dataset"].update(rows=45 - rows, calls=47 - rows - 1)

    edit_manifest(out, older)
    (out / "_SUCCESS").unlink()
    assert verify(out).ok
    part.unlink()
    assert problems(out) == [f"{part.name}: {MISSING.format(rows=rows, out=out)}"]


def test_a_growing_file_holds_as_far_as_the_manifest_says(made: Made) -> None:
    out = made(GROWING)
    assert verify(out).rows == 45
    size = out.stat().st_size
    with out.open("ab") as stream:
        stream.write(b'{"torn')
    found = verify(out)
    assert found.ok
    assert found.remarks == [f"{out} continues after byte {size}: those rows are not committed yet"]
    os.truncate(out, size - 10)
    assert problems(out) == [
        "results.ndjson:45: incomplete: it has no line feed at its end",
        f"results.ndjson: {size - 10} bytes, but {size} in the manifest",
    ]
    out.unlink()
    assert problems(out) == ["results.ndjson: missing, with 45 rows; restore it"]


def test_a_work_dir_that_is_named_is_verified(made: Made, tmp_path: Path) -> None:
    out = made()
    (out / "_harvester").rename(tmp_path / "elsewhere")
    found = verify(out)
    assert (found.ok, found.ledger_checked) == (True, False)
    assert "--work-dir" in found.not_checked[0]
    edit_manifest(out, lambda manifest: manifest.update(work_dir="/var/elsewhere"))
    assert verify(out).not_checked[0].endswith("(the manifest's run had --work-dir /var/elsewhere)")
    assert verify(out, tmp_path / "elsewhere").ledger_checked


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_verifies_all_but_the_ledger(made: Made) -> None:
    code = (
        "import gzip, os, psutil, sys, zlib, harvester.verify.verify\n"
        "from harvester.cli.command_line.app import app\nfrom harvester.cli.main import main\n"
        f"app.resolved_commands()\nos.setuid({NOBODY})\n"
        "main(['verify', sys.argv[1]])\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        out = Path(shutil.copytree(made(), Path(folder) / "out"))
        (out / "_harvester").chmod(0o700)
        done = subprocess.run(
            [sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not checked: the ledger" in done.stdout
    assert "not compared with a ledger" in done.stdout


def test_a_store_of_objects_is_verified_through_its_names_and_streams(made: Made) -> None:
    out = made("out", "parquet", "flat")

    class Body(io.RawIOBase):
        """What comes over a connection."""

        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self._data.readinto(memoryview(buffer)[:1000])

    class Store(LocalStorage):
        """Has neither folders nor paths, and streams that cannot seek."""

        def names(self) -> list[str]:
            return [path.name for path in out.iterdir() if path.is_file()]

        def open(self, name: str) -> Any:
            return Body((out / name).read_bytes())

        def path(self, name: str) -> str:
            return f"s3://bucket/out/{name}"

    shelf = Store(str(out))
    found = verifying.verify(verifying.Output("s3://bucket/out", shelf, shelf, growing=False, work_dir=None))
    assert found.ok
    assert found.calls == 45
    assert "--work-dir" in found.not_checked[0]


def test_what_was_published_into_an_object_store_is_verified_there(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in case.s3.env.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"^nothing to verify at {case.out}"):
        verifying.verify(verifying.output_at(case.out))
    given: Any = {"work_dir": case.work, "base_url": case.served.url, "part_rows": 3, **NO_LIMIT}
    asyncio.run(harvest(case.links, out=case.out, **given))
    output = verifying.output_at(case.out, str(case.work))
    whole = as_text(verifying.verify(output))
    assert "7 rows of 7 calls, 0 lines of _failures.ndjson; compared with the ledger" in whole
    assert whole.endswith("OK: the run is complete; 7 of 7 published rows are here")
    alone = verifying.verify(verifying.output_at(f"{case.out}/_manifest.json"))
    assert (alone.ok, alone.ledger_checked) == (True, False)
    assert alone.not_checked[0].endswith(f"(the manifest's run had --work-dir {case.work})")
    name = min(each for each in case.held() if each.startswith("part-"))
    obstore.put(case.store, name, b"spoiled")
    assert f"{case.out}/{name}:1: cannot be read further" in as_text(verifying.verify(output))
    obstore.delete(case.store, name)
    moved = verifying.verify(output, allow_moved=True)
    assert (moved.ok, moved.moved_away) == (True, [f"{case.out}/{name}"])


def verdict_soon(out: Path) -> str:
    """What a verification comes to; it must come to something."""
    told: list[str] = []

    def work() -> None:
        try:
            told.append("ok" if verify(out).ok else "failed")
        except OutputError:
            told.append("unreadable")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert told, "it waits, or has crashed"
    return told[0]


@pytest.mark.parametrize("name", ["_manifest.json", "_failures.ndjson", "part", "_harvester/ledger.sqlite"])
def test_a_folder_or_a_pipe_in_the_place_of_a_file_holds_nothing_up(made: Made, name: str) -> None:
    out = made()
    path = part_of(out) if name == "part" else out / name
    for make in (Path.mkdir, os.mkfifo):
        path.unlink() if path.is_file() else path.rmdir()
        make(path)
        assert verdict_soon(out) != "ok"


# --- what does not -------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        row = orjson.loads(lines[2])
        del row[name]
        return [*lines[:2], orjson.dumps(row) + b"\n", *lines[3:]]

    return change


SPOILED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "not JSON": (lambda lines: [*lines[:2], b"{nonsense\n", *lines[3:]], "not JSON"),
    "blank": (lambda lines: [*lines[:2], b"\n", *lines[3:]], "not JSON"),
    "not UTF-8": (lambda lines: [*lines[:2], lines[2].replace(b"bit.ly", b"bit\xff"), *lines[3:]], "not JSON"),
    "a list": (lambda lines: [*lines[:2], b"[]\n", *lines[3:]], "not a JSON object"),
    "a key less": (without("facet"), "facet is missing"),
    "a key more": (edited(more=1), "more is not a key of a row"),
    "disorder": (
        lambda lines: [*lines[:2], orjson.dumps(dict(reversed(orjson.loads(lines[2]).items()))) + b"\n", *lines[3:]],
        "its keys are not in order",
    ),
    "wrong type": (edited(size="50"), "size is not integer"),
    "a truth for a number": (edited(units_returned=True), "units_returned is not integer, or null"),
    "null": (edited(truncated=None), "truncated is not boolean"),
    "another run": (edited(run_id="0"), "run_id is '0', but"),
    "another query": (edited(facet="countries"), "facet is 'countries', but 'referrers' in the manifest"),
    "another version": (edited(schema_version=3), "schema_version is 3, but this harvester knows up to 2"),
    "a version before the first": (edited(schema_version=0), "schema_version is 0, but this harvester knows up to 2"),
    "local time": (edited(fetched_at="2026-11-23T06:00:00+01:00"), "fetched_at is not a UTC time"),
    "no such day": (edited(fetched_at="2026-02-30T06:00:00Z"), "fetched_at is not a UTC time"),
    "another link": (edited(bitlink="bit.ly/other"), "record_id is not that of its call"),
    "another id": (edited(record_id="0" * 32), "record_id is not that of its call"),
    "clicks": (edited(clicks_listed=10**6), "clicks_listed is 1000000, but its metrics add up to "),
    "too many clicks": (edited(clicks_listed=2**63), "clicks_listed is not a count"),
    "not truncated": (edited(truncated=True), "truncated is true, but "),
    "a metric's key": (edited(metrics=[{"value": "x"}]), "an entry of metrics: clicks is missing"),
    "a metric's clicks": (edited(metrics=[{"value": "x", "clicks": -1}]), "an entry of metrics: clicks is not a count"),
    "a metric's value": (edited(metrics=[{"value": 1, "clicks": 1}]), "an entry of metrics: value is not text"),
    "a metric": (edited(metrics=["x"]), "an entry of metrics: not a JSON object"),
    "many units": (edited(units_returned=2**63), "units_returned has more than 64 bits"),
    "a key twice": (
        lambda lines: [*lines[:2], lines[2].replace(b'"size":', b'"size":1,"size":'), *lines[3:]],
        "duplicate key: size",
    ),
    "a metric's key twice": (
        lambda lines: [*lines[:2], lines[2].replace(b'"clicks":', b'"clicks":1,"clicks":', 1), *lines[3:]],
        "duplicate key: clicks",
    ),
    "depths": (lambda lines: [*lines[:2], b"[" * 1000 + b"]" * 1000 + b"\n", *lines[3:]], "it is nested too"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_row_that_is_not_what_the_schema_says_is_named_with_its_line(made: Made, spoiled: str) -> None:
    out = made("out", "ndjson.gz", "nested")
    change, text = SPOILED[spoiled]
    rewrite(out, change)
    (only,) = problems(out)
    assert only.startswith(f"{part_of(out).name}:3: {text}")


def cut_call(lines: list[bytes]) -> list[bytes]:
    """Take away a line of the first call that has several."""
    links = [orjson.loads(line)["bitlink"] for line in lines]
    index = next(i for i in range(1, len(links)) if links[i] == links[i - 1])
    return lines[: index - 1] + lines[index:]


def later(lines: list[bytes]) -> list[bytes]:
    """Let a call's second row say another moment than its first."""
    links = [orjson.loads(line)["bitlink"] for line in lines]
    index = next(i for i in range(1, len(links)) if links[i] == links[i - 1])
    row = {**orjson.loads(lines[index]), "fetched_at": "2026-01-01T00:00:00Z"}
    return [*lines[:index], orjson.dumps(row) + b"\n", *lines[index + 1 :]]


def nothing_and(value: str, **more: Any) -> Callable[[list[bytes]], list[bytes]]:
    """Let the first call have the row of nulls, and another one behind it, each with the right record_id."""

    def change(lines: list[bytes]) -> list[bytes]:
        first = orjson.loads(lines[0])
        call = {**first, "clicks_listed": 0, "truncated": False, "metrics": []}
        del call["value"], call["clicks"]
        metric = {**call, **more, "metrics": [{"value": value, "clicks": 0}]}
        others = [line for line in lines if orjson.loads(line)["bitlink"] != first["bitlink"]]
        return [*flattened(orjson.dumps(call)), *flattened(orjson.dumps(metric)), *others]

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (later, ": fetched_at is not that of its call's first row"),
        (nothing_and(""), ":2: a metric follows the row that says that its call has none"),
        (nothing_and("direct"), ":2: a metric follows the row that says that its call has none"),
        (nothing_and("direct", units_returned=3), ":2: a metric follows the row"),
        (edited(clicks=-5), ":3: clicks is not a count"),
        (edited(value=None), ":3: value is not text"),
        (edited(call_id="0" * 32), ":3: call_id is not that of its call"),
        (without("call_id"), ":3: call_id is missing"),
        (edited(value="another"), ":3: record_id is not that of its call and metric"),
        (cut_call, "clicks_listed is "),
    ],
)
def test_a_flat_row_and_a_call_of_flat_rows_must_add_up(
    made: Made, change: Callable[[list[bytes]], list[bytes]], text: str
) -> None:
    out = made("out", "ndjson", "flat")
    rewrite(out, change)
    assert any(text in problem for problem in problems(out))


def test_rows_of_the_version_before_hold_beside_newer_ones(made: Made) -> None:
    out = made("out", "ndjson.gz", "nested")
    rewrite(out, edited(schema_version=1))
    assert problems(out) == []


@pytest.mark.parametrize("shape", Shape)
def test_a_row_that_stands_in_two_parts_is_named_with_both(made: Made, shape: str) -> None:
    out = made("out", "ndjson", shape)
    first = content(part_of(out)).splitlines(keepends=True)[:1]
    link = orjson.loads(first[0])["bitlink"]
    whole = [line for line in content(part_of(out)).splitlines(keepends=True) if orjson.loads(line)["bitlink"] == link]
    rewrite(out, lambda lines: lines + whole, 1)
    told = [problem for problem in problems(out) if "already" in problem]
    assert told[0].startswith(f"{part_of(out, 1).name}:")
    assert told[0].endswith(f"its record_id is already in {part_of(out)}:1")
    assert len(told) == (len(whole) if shape == "nested" else len(whole) + 1)


def test_keys_that_came_twice_are_a_problem_though_their_rows_are_not_found_again(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader may move a part away meanwhile."""
    out = made()
    first = content(part_of(out)).splitlines(keepends=True)[:1]
    rewrite(out, lambda lines: lines[:-1] + first, 1)
    monkeypatch.setattr(verifying._Rows, "_again", lambda *_: iter(()))
    assert problems(out) == [": 1 more keys of rows are duplicates"]


def test_a_part_whose_bytes_have_changed_is_named(made: Made) -> None:
    out = made()
    part = part_of(out)
    data = part.read_bytes()
    part.write_bytes(data.replace(b": ", b":  ").replace(b'","', b'", "', 1))
    assert [text.partition(",")[0] for text in problems(out)] == [f"{part.name}: {len(data) + 1} bytes"]
    part.write_bytes(data.replace(b"https:", b"HTTPS:", 1))
    assert [text.partition(" is ")[0] for text in problems(out)] == [f"{part.name}: its sha256"]


@pytest.mark.parametrize("form", [Format.NDJSON_GZ, Format.NDJSON_ZST, Format.PARQUET])
@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_part_is_named_and_the_others_are_read(made: Made, form: Format, damage: str) -> None:
    out = made("out", form, "nested")
    part = part_of(out)
    data = part.read_bytes()
    middle = len(data) // 2
    part.write_bytes(
        {"torn": data[:middle], "empty": b"", "flipped": data[:middle] + b"\xaa\x55" * 40 + data[middle + 80 :]}[damage]
    )
    found = verify(out)
    assert not found.ok
    assert {os.path.basename(problem.file) for problem in found.problems} == {part.name}
    assert found.rows >= 25


def test_parquet_of_other_columns_is_named(made: Made) -> None:
    out = made("out", "parquet", "nested")
    part = part_of(out)
    table = parquet.read_table(part)
    parquet.write_table(table.drop_columns(["size"]), part)
    assert "its columns are record_id, run_id" in problems(out)[0]
    place = table.column_names.index("size")
    parquet.write_table(table.set_column(place, "size", table["size"].cast(pa.int32())), part)
    assert f"{part.name}:1: its column size is int32, expected int64" in problems(out)[0]


def test_an_unlisted_part_is_named(made: Made) -> None:
    out = made()
    copies, others = ["part-0a-00000.ndjson", "part-copy.ndjson"], ["notes.ndjson", "part-old"]
    for name in copies + others:
        shutil.copy(part_of(out), out / name)
    found = verify(out)
    assert [os.path.basename(problem.file) for problem in found.problems] == copies
    text = "is not a harvester file; a loader must not take it for a part"
    assert found.remarks == [f"{out / name} {text}" for name in others]


def test_leftovers_of_a_killed_run_are_named_and_are_not_a_problem(made: Made) -> None:
    out = made()
    (out / ".part-0a-00007.tmp").write_bytes(b"half")
    found = verify(out)
    assert found.ok
    assert ".part-0a-00007.tmp was left over" in found.remarks[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m["dataset"].update(rows=44), "dataset.calls is not rows + refused"),
        (lambda m: m["dataset"].update(rows=44, calls=45), "its parts have 45 calls, but dataset.rows is 44"),
        (lambda m: m["list"].update(lines=99), "list.lines is not blank + comments"),
        (lambda m: m.update(updated="yesterday"), "started or updated is not a UTC time"),
        (lambda m: m.update(input_read_to_end=False), "complete, but also stopped"),
        (lambda m: m["parts"].append(m["parts"][0]), "it lists part-"),
        (lambda m: m["parts"][0].update(path="../other"), "which is not a part name of this run"),
        (lambda m: m["query"].update(units=0), "query.units is neither -1"),
        (lambda m: m["query"].update(facet=5), "query.facet is not as expected"),
        (lambda m: m.update(shape="round"), "shape is neither nested nor flat"),
        (lambda m: m.update(run_id="0a"), "run_id is 0a, but the ledger's is "),
        (lambda m: m["dataset"].update(failed=1, calls=47), "dataset.failed is 1, but 0 in the ledger"),
        (lambda m: m["dataset"].update(truncated=1), "dataset.truncated is 1, but 0 of the rows are"),
        (lambda m: m["dataset"].update(clipped=1), "dataset.clipped is 1, but 0 in the ledger"),
        (
            lambda m: m["dataset"].update(truncated=47),
            "or dataset.idle is more than dataset.rows",
        ),
        (lambda m: m["parts"].pop(), "it does not list part-"),
        (lambda m: m["parts"][0].update(calls=3), "calls of part-"),
        (lambda m: m["parts"][0].update(calls="3"), "parts.calls is not as expected"),
        (lambda m: m["parts"][0].pop("sha256"), "it has no sha256 of part-"),
        (lambda m: m["list"].update(blank=None), "list.blank is not as expected"),
        (lambda m: m.clear(), "schema_version is missing); nothing else was checked"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_named(
    made: Made, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    out = made()
    edit_manifest(out, change)
    assert any(problem.startswith("_manifest.json: ") and text in problem for problem in problems(out))


def test_a_torn_manifest_is_a_problem_and_a_newer_one_a_usage_error(made: Made) -> None:
    out = made()
    edit_manifest(out, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(UsageError, match="update it"):
        verify(out)
    (out / "_manifest.json").write_bytes(b"{")
    assert "not JSON" in problems(out)[0]


def test_a_growing_files_manifest_lists_that_file_alone(made: Made) -> None:
    out = made(GROWING)
    edit_manifest(out, lambda manifest: manifest["parts"][0].update(path="../other"))
    assert "_manifest.json: it lists '../other', which is not a part name of this run" in problems(out)


def test_rows_that_were_settled_and_not_published_at_a_runs_end_are_reported(made: Made) -> None:
    out = made()
    stopped = {"reason": "output", "message": "the disk is full", "until": None}
    edit_manifest(out, lambda manifest: manifest.update(complete=False, stopped=stopped))
    edit_manifest(out, lambda manifest: manifest["dataset"].update(rows=50, calls=51))
    (out / "_SUCCESS").unlink()
    shutil.rmtree(out / "_harvester")
    found = verify(out)
    assert found.ok
    assert found.remarks == [f"{out}/_manifest.json: 5 of its 50 calls with a row are not published yet"]


def test_success_must_be_there_exactly_when_all_is_complete(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_REREAD_SECONDS", 0.0)
    out = made()
    (out / "_SUCCESS").unlink()
    assert problems(out) == ["_SUCCESS: missing, but the manifest says complete: run the same command again"]
    (out / "_SUCCESS").touch()
    edit_manifest(out, lambda manifest: manifest.update(complete=False))
    assert problems(out) == ["_SUCCESS: it exists, but the manifest does not say complete"]


def test_failures_that_are_not_well_formed_are_named_with_their_line(made: Made) -> None:
    out = made()
    path = out / "_failures.ndjson"
    first, second = path.read_bytes().splitlines(keepends=True)
    for changed, text in (
        (first + second.replace(b'"invalid"', b'"unknown"'), ":2: kind is 'unknown'"),
        (first.replace(b'"status":404', b'"status":"404"') + second, ":1: status is not integer, or null"),
        (first.replace(b'"referrers"', b'"countries"') + second, ":1: facet is 'countries'"),
        (first + second.replace(b'"bitlink":null', b'"bitlink":"x"'), ":2: a bitlink belongs in every line"),
        (first + b"{}\n" + second, ":2: bitlink is missing"),
        (first + second[:-1], ":2: incomplete"),
        (first, ": 0 lines are invalid, but 1 in the manifest"),
        (first.replace(b"NOT_FOUND", b"not_found") + second, ":1: differs from the ledger"),
    ):
        path.write_bytes(changed)
        assert any(problem.startswith(f"_failures.ndjson{text}") for problem in problems(out)), text
    path.unlink()
    assert problems(out)[0].startswith("_failures.ndjson: missing")


def test_a_ledger_that_is_damaged_is_named_and_the_rest_is_checked(made: Made) -> None:
    out = made()
    (out / "_harvester" / "ledger.sqlite").write_bytes(b"no database" * 500)
    found = verify(out)
    assert "the ledger is damaged" in found.problems[0].text
    assert found.rows == 45


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE parts SET calls = 'x'", "the ledger is damaged (a value that cannot be there)"),
        ("UPDATE facts SET value = 'x' WHERE name = 'invocation'", "the ledger is damaged (a value that cannot be"),
        ("UPDATE journals SET committed = -1", "the ledger is damaged (a value that cannot be there)"),
        ("UPDATE failures SET line = 'x'", "differs from the ledger"),
        ("DROP TABLE failures", "the ledger is damaged (no such table: failures)"),
        ("DELETE FROM calls WHERE state = 1", "dataset.refused is 1, but 0 in the ledger"),
        ("UPDATE parts SET sealed = 0", "which the ledger does not know as published"),
    ],
)
def test_a_ledger_that_disagrees_is_named(made: Made, statement: str, text: str) -> None:
    out = made()
    with closing(sqlite3.connect(out / "_harvester" / "ledger.sqlite")) as ledger:
        ledger.execute("INSERT OR IGNORE INTO journals VALUES (99, 0)")
        ledger.execute(statement)
        ledger.commit()
    assert any(text in problem for problem in problems(out))


def test_a_ledger_whose_damage_sqlite_cannot_put_into_words_is_named(made: Made) -> None:
    path = made() / "_harvester" / "ledger.sqlite"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE checkpoint", b"CREATE TABL\xff\xfecheckpoint"))
    (problem,) = verify(path.parent.parent).problems
    assert problem.file == str(path)
    assert problem.text.startswith("the ledger is damaged (")


async def test_an_output_that_has_no_call_yet_is_begun_anew_as_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="not bitlinks"):
        await harvest(["nonsense"], out=out, strict=True, base_url="http://127.0.0.1:9", **NO_LIMIT)
    query = Query(**orjson.loads((out / "_manifest.json").read_bytes())["query"])
    with open_dataset(resolve(str(out)), query, PartLimits(1000, 1_000_000), list[str]().append):
        pass
    found = verify(out)
    assert (found.ok, found.remarks) == (True, [])


def test_a_missing_journal_is_named(made: Made) -> None:
    out = made()
    query = Query(**orjson.loads((out / "_manifest.json").read_bytes())["query"])
    limits, warn = PartLimits(1000, 1_000_000), list[str]().append
    with open_dataset(resolve(str(out)), query, limits, warn, server="127.0.0.1") as store:
        settle(store, "one-more")
        keep(store)
    found = verify(out)
    assert (found.ok, found.ended, found.ledger_checked) == (True, False, True)
    for journal in (out / "_harvester").glob("journal-*"):
        journal.unlink()
    assert "a journal that the ledger refers to is missing" in as_text(verify(out))


def test_the_first_twenty_problems_are_printed_and_the_others_counted(made: Made) -> None:
    out = made("out", "ndjson", "flat")
    rewrite(out, lambda lines: [b"{}\n"] * 100)
    lines = as_text(verify(out)).splitlines()
    assert lines[MOST_PROBLEMS - 1].startswith(f"{part_of(out)}:{MOST_PROBLEMS}: ")
    assert lines[MOST_PROBLEMS].startswith("and ")
    assert lines[MOST_PROBLEMS].endswith(" more problems")


# --- while a run goes on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", GROWING])
def test_a_run_that_goes_on_and_what_is_left_when_it_is_killed_hold(
    tmp_path: Path, serve: Callable[..., Served], name: str
) -> None:
    out, served = tmp_path / name, serve(latency_ms=5)
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{number}\n" for number in range(5000)))
    where = ("--out", str(out), "--base-url", served.url, *NO_LIMITS)
    process = start("run", str(tmp_path / "links.txt"), *where, *(() if out.suffix else ("--part-rows", "25")))
    looks: list[Findings] = []
    try:
        while served.sandbox.answered.total() < 250 or len(looks) < 10:
            if (public(out) / "_manifest.json").exists():
                looks.append(verify(out))
            threading.Event().wait(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert [as_text(look) for look in looks if not look.ok] == []
    found = verify(out)
    assert as_text(found).splitlines()[-1].startswith("OK so far: the run has not ended; ")
    assert (found.ledger_checked, found.ended) == (True, False)


# --- the checks themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [7, 10_000])
def test_keys_that_came_twice_are_found_in_memory_and_on_disk(in_memory: int) -> None:
    keys = [hashlib.sha256(str(number).encode()).digest()[:16] for number in range(1000)]
    distinct = DuplicateFinder(in_memory)
    for key in [*keys, *keys[10:14], keys[12]]:
        distinct.add(key)
    some, count = distinct.repeated(100)
    assert (sorted(some), count) == (sorted(keys[10:14]), 4)
    assert distinct.repeated(2)[1] == 4
    assert len(distinct.repeated(2)[0]) == 2
    distinct.close()


def test_a_clock_that_was_set_is_reported_and_is_not_a_problem(made: Made) -> None:
    out = made()
    edit_manifest(out, lambda manifest: manifest.update(updated=manifest["started"], started="2026-01-01T00:00:00Z"))
    rewrite(out, edited(fetched_at="2025-01-01T00:00:00Z"))
    found = verify(out)
    assert found.ok
    assert "a clock was set" in found.remarks[0]


def test_a_check_needs_no_more_than_a_query() -> None:
    told: list[tuple[int, str]] = []
    query = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
    check = Nested(query, "0a", lambda number, text: told.append((number, text)))
    assert check.check_row(7, {}) is None
    assert told == [(7, "record_id is missing")]
