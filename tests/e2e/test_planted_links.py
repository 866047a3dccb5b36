"""Links, pipes and devices where harvester's own files should be: nothing outside the output is written to."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harvester.storage import location
from tests.conftest import Served
from tests.support.commands import NO_LIMITS
from tests.support.in_process import Said, command
from tests.support.output_checks import manifest, rows

STATE = ["journal-00000.journal", "attempts", "active-links", "ledger.sqlite", "ledger.sqlite-wal"]
KEPT = b"precious: not harvester's\n"


@pytest.fixture
def victim(quick_path: Path) -> Iterator[Path]:
    """A file of the same user's, which must not change."""
    path = quick_path / "victim"
    path.write_bytes(KEPT)
    path.chmod(0o640)
    yield path
    assert path.read_bytes() == KEPT
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.fixture
def run(
    quick_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run the command on three links, into an --out in the test's folder."""
    url = serve().url
    (quick_path / "links.txt").write_text("bit.ly/a\nbit.ly/b\nbit.ly/c\n")
    monkeypatch.setenv("BITLY_TOKEN", "0123456789abcdef0123456789abcdef01234567")

    def run(out: Path | str, *more: str) -> Said:
        words = ("run", str(quick_path / "links.txt"), "--out", str(out), "--base-url", url, *NO_LIMITS, *more)
        return command(capsys, *words)

    return run


def by_symlink(name: Path, victim: Path) -> None:
    name.symlink_to(victim)


def by_hard_link(name: Path, victim: Path) -> None:
    os.link(victim, name)


def by_dangling_link(name: Path, victim: Path) -> None:
    name.symlink_to(victim.with_name("not-there"))


@pytest.mark.parametrize("plant", [by_symlink, by_hard_link, by_dangling_link])
def test_what_is_planted_under_the_name_of_a_temporary_file_is_not_written_to(
    quick_path: Path, run: Callable[..., Said], victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    run_id = manifest(out)["run_id"]
    names = ["._manifest.json.tmp", "._failures.ndjson.tmp", "._SUCCESS.tmp", "_failures.ndjson", "_SUCCESS"]
    for name in [*names, f".part-{run_id}-00000.tmp", f".part-{run_id}-00001.tmp"]:
        (out / name).unlink(missing_ok=True)
        plant(out / name, victim)
    for name in ("scratch.sqlite", "spool-0"):
        plant(out / "_harvester" / name, victim)
    assert run(out, "--strict").code == 0
    assert len(rows(out)) == 3
    assert not (quick_path / "not-there").exists()
    assert not [path for path in out.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize(
    "plant",
    [by_symlink, by_dangling_link, lambda name, _: os.mkfifo(name), lambda name, _: name.mkdir()],
    ids=["symlink", "dangling link", "pipe", "folder"],
)
def test_what_is_planted_into_the_state_is_refused(
    quick_path: Path, run: Callable[..., Said], victim: Path, name: str, plant: Callable[[Path, Path], None]
) -> None:
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    planted = out / "_harvester" / name
    planted.unlink(missing_ok=True)
    plant(planted, victim)
    said = run(out)
    assert said.code == 8
    assert str(planted) in said.err
    assert "where a file of harvester's belongs. Move it away" in said.err
    assert "Traceback" not in said.err
    assert not (quick_path / "not-there").exists()


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "journal-00000.journal"])
def test_no_command_reads_a_ledger_with_a_folder_in_the_place_of_a_file(
    quick_path: Path, run: Callable[..., Said], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """SQLite itself would show the ledger without its log: `plan` would count the calls as still to be made."""
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    taken = out / "_harvester" / name
    taken.unlink(missing_ok=True)
    taken.mkdir()
    wanted = f"{taken} is a folder where a file of harvester's belongs. Move it away"
    plan = ("plan", str(quick_path / "links.txt"), "--offline", "--out", str(out))
    for words in (plan, ("verify", str(out)), ("repair", str(out)), ("repair", str(out), "--apply")):
        said = command(capsys, *words)
        assert said.code == 8, words
        assert wanted in said.out + said.err, words
    assert ("`harvester repair" in said.err) == (name in {"ledger.sqlite", "ledger.sqlite-wal"})


@pytest.mark.parametrize("name", ["._manifest.json.tmp", "_manifest.json", "_failures.ndjson"])
def test_a_folder_in_the_way_of_a_file_is_named_with_what_to_do(
    quick_path: Path, run: Callable[..., Said], name: str
) -> None:
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    said = run(out)
    assert said.code == 8
    assert f"{out / name}: it is a folder where a file belongs: move it away" in said.err
    (out / name).rmdir()
    assert run(out).code == 0
    assert len(rows(out)) == 3


@pytest.mark.parametrize("name", STATE)
def test_a_hard_link_planted_into_the_state_is_copied_away_from(
    quick_path: Path, run: Callable[..., Said], victim: Path, name: str
) -> None:
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    planted = out / "_harvester" / name
    planted.unlink(missing_ok=True)
    by_hard_link(planted, victim)
    said = run(out)
    assert f"{planted} had a second name" in said.err
    assert said.code == (8 if name == "ledger.sqlite" else 0)
    assert victim.stat().st_nlink == 1


def test_an_output_with_a_backup_of_hard_links_goes_on_and_the_backup_stays_as_it_was(
    quick_path: Path, run: Callable[..., Said]
) -> None:
    out, backup = quick_path / "out", quick_path / "backup"
    assert run(out, "--max-calls", "1").code == 9
    (out / "_harvester" / "ledger.sqlite").chmod(0o600)
    shutil.copytree(out, backup, copy_function=os.link)
    before = {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()}
    said = run(out)
    assert said.code == 0, said.err
    assert f"{out}/_harvester/ledger.sqlite had a second name" in said.err
    assert len(rows(out)) == 3
    assert {path: path.read_bytes() for path in before} == before
    ledger = out / "_harvester" / "ledger.sqlite"
    assert (ledger.stat().st_nlink, stat.S_IMODE(ledger.stat().st_mode)) == (1, 0o600)
    assert "second name" not in run(out).err


def test_a_ledger_that_another_process_has_open_by_a_second_name_is_left_to_it(
    quick_path: Path, run: Callable[..., Said]
) -> None:
    out = quick_path / "out"
    assert run(out, "--max-calls", "1").code == 9
    ledger, other = out / "_harvester" / "ledger.sqlite", quick_path / "other.sqlite"
    os.link(ledger, other)
    use = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('SELECT * FROM facts'); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{use}; sys.stdin.read()", str(other)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        said = run(out)
        process.kill()
    assert said.code == 5
    assert f"process {process.pid} has {ledger} open by a second name" in said.err
    assert ledger.stat().st_nlink == 2


@pytest.mark.parametrize("name", ["budget.sqlite", "connections"])
@pytest.mark.parametrize("plant", [by_symlink, by_dangling_link])
def test_what_is_planted_into_a_shared_state_folder_is_refused(
    quick_path: Path, run: Callable[..., Said], victim: Path, name: str, plant: Callable[[Path, Path], None]
) -> None:
    state = quick_path / "state"
    state.mkdir()
    plant(state / name, victim)
    said = run(quick_path / "out", "--state-dir", str(state))
    assert said.code == 8
    assert str(state / name) in said.err
    assert not (quick_path / "not-there").exists()


def test_a_link_for_a_connections_lock_is_refused(quick_path: Path, run: Callable[..., Said], victim: Path) -> None:
    state = quick_path / "state"
    assert run(quick_path / "out", "--state-dir", str(state)).code == 0
    lock = next(state.rglob("process-0"))
    lock.unlink()
    lock.symlink_to(victim)
    said = run(quick_path / "other", "--state-dir", str(state))
    assert said.code == 8
    assert str(lock) in said.err


def test_the_metrics_file_is_written_through_no_link(quick_path: Path, run: Callable[..., Said], victim: Path) -> None:
    metrics = quick_path / "a.prom"
    metrics.symlink_to(victim)
    assert run(quick_path / "out", "--metrics-file", str(metrics)).code == 0
    assert not metrics.is_symlink()
    metrics.unlink()
    os.mkfifo(metrics)
    assert run(quick_path / "out", "--metrics-file", str(metrics)).code == 2
    assert stat.S_ISFIFO(metrics.stat().st_mode)


# --- the state ----------------------------------------------------------------------------------------------------


def test_a_state_folder_that_a_link_shares_is_refused(quick_path: Path, run: Callable[..., Said]) -> None:
    one, other = quick_path / "one", quick_path / "other"
    assert run(one, "--max-calls", "1").code == 9
    other.mkdir()
    (other / "_harvester").symlink_to(one / "_harvester")
    said = run(other)
    assert said.code == 2
    assert f"the state of --out {one}, reached by a symbolic link" in said.err
    assert run(one).code == 0
    assert len(rows(one)) == 3


def test_so_is_that_of_a_growing_file(quick_path: Path, run: Callable[..., Said]) -> None:
    one, other = quick_path / "one.ndjson", quick_path / "other.ndjson"
    assert run(one, "--max-calls", "1").code == 9
    (quick_path / "other.ndjson.harvester").symlink_to(quick_path / "one.ndjson.harvester")
    said = run(other)
    assert said.code == 2
    assert f"the state of --out {one}" in said.err
    assert not other.exists()


@pytest.mark.parametrize("kind", ["out", "_harvester", "work dir"])
def test_links_of_the_users_own_are_followed(quick_path: Path, run: Callable[..., Said], kind: str) -> None:
    disk = quick_path / "disk"
    disk.mkdir()
    out, more = quick_path / "out", []
    if kind == "out":
        out.symlink_to(disk)
    elif kind == "_harvester":
        out.mkdir()
        (out / "_harvester").symlink_to(disk)
    else:
        (quick_path / "work").symlink_to(disk)
        more = ["--work-dir", str(quick_path / "work")]
    assert run(out, "--max-calls", "1", *more).code == 9
    assert run(out, *more).code == 0
    assert len(rows(out)) == 3


def test_an_output_whose_folder_was_renamed_goes_on_by_its_link(quick_path: Path, run: Callable[..., Said]) -> None:
    disk, out = quick_path / "disk", quick_path / "out"
    disk.mkdir()
    out.mkdir()
    (out / "_harvester").symlink_to(disk)
    assert run(out, "--max-calls", "1").code == 9
    out.rename(quick_path / "renamed")
    assert run(quick_path / "renamed").code == 0


def test_a_link_of_another_users_is_not_followed(
    quick_path: Path, run: Callable[..., Said], victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("folders", "watch"):
        monkeypatch.setattr(f"harvester.storage.{module}.is_own_link", lambda _: False)
    out, growing = quick_path / "out", quick_path / "x.ndjson"
    out.mkdir()
    (quick_path / "elsewhere").mkdir()
    (out / "_harvester").symlink_to(quick_path / "elsewhere")
    said = run(out)
    assert said.code == 8
    assert "another user" in said.err
    assert not os.listdir(quick_path / "elsewhere")
    growing.symlink_to(quick_path / "y.ndjson")
    said = run(growing)
    assert said.code == 2
    assert "another user" in said.err
    assert not (quick_path / "y.ndjson").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link for another user")
def test_whose_a_link_is(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("anywhere")
    assert location.is_own_link(str(link))
    os.lchown(link, 65534, 65534)
    assert not location.is_own_link(str(link))
    os.chown(tmp_path, 65534, 65534)
    assert location.is_own_link(str(link))


# --- a growing file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_named_as_the_growing_file_is_followed_and_its_state_lies_beside_the_file(
    quick_path: Path, run: Callable[..., Said], capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    link, file = quick_path / "current.ndjson", quick_path / "disk" / "2026-11.ndjson"
    file.parent.mkdir()
    if exists:
        file.touch()
    link.symlink_to(file)
    assert run(link, "--max-calls", "1").code == 9
    assert link.is_symlink()
    assert sorted(os.listdir(file.parent)) == ["2026-11.ndjson", "2026-11.ndjson.harvester"]
    assert not (quick_path / "current.ndjson.harvester").exists()
    assert run(file, "--max-calls", "1").code == 9
    assert run(link).code == 0
    assert len(file.read_bytes().splitlines()) == 3
    for word in ("status", "verify"):
        assert command(capsys, word, str(link)).code == 0


def test_a_link_that_was_turned_elsewhere_begins_another_output(quick_path: Path, run: Callable[..., Said]) -> None:
    link = quick_path / "current.ndjson"
    for month in ("10.ndjson", "11.ndjson"):
        link.unlink(missing_ok=True)
        link.symlink_to(quick_path / month)
        assert run(link).code == 0
        assert len((quick_path / month).read_bytes().splitlines()) == 3


def test_state_beside_a_link_is_not_left_alone(quick_path: Path, run: Callable[..., Said]) -> None:
    link, file = quick_path / "x.ndjson", quick_path / "y.ndjson"
    assert run(link, "--max-calls", "1").code == 9
    link.rename(file)
    link.symlink_to(file)
    said = run(link)
    assert said.code == 2
    assert f"mv {link}.harvester {file}.harvester" in said.err
    os.rename(f"{link}.harvester", f"{file}.harvester")
    assert run(link).code == 0
    assert len(file.read_bytes().splitlines()) == 3


def test_a_link_to_no_growing_file_is_refused(quick_path: Path, run: Callable[..., Said], victim: Path) -> None:
    (quick_path / "x.ndjson").symlink_to(victim)
    (quick_path / "circle.ndjson").symlink_to(quick_path / "circle.ndjson")
    for name in ("x.ndjson", "circle.ndjson"):
        said = run(quick_path / name)
        assert said.code == 2
        assert "must lead to a file that ends in .ndjson or .jsonl" in said.err
    assert sorted(os.listdir(quick_path)) == ["circle.ndjson", "links.txt", "victim", "x.ndjson"]


# --- what is neither a folder nor a file -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out.ndjson"])
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_an_out_that_is_no_file_is_refused(
    quick_path: Path, run: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    out = quick_path / name
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "a named pipe":
            os.mkfifo(out)
        elif kind == "a socket":
            monkeypatch.chdir(quick_path)  # a socket's path may have 108 bytes
            listening.bind(name)
        else:
            out.symlink_to("/dev/null")
        said = run(out)
    assert said.code == 2
    assert f"--out {out} is {kind}, neither a folder nor a file" in said.err
    assert "--out - >" in said.err or "pipe the rows" in said.err
    assert sorted(os.listdir(quick_path)) == ["links.txt", name]


@pytest.mark.parametrize("out", ["/dev/stdout", "/dev/fd/1", "/dev/null"])
def test_an_out_in_dev_is_refused_with_what_to_do(run: Callable[..., Said], out: str) -> None:
    said = run(out)
    assert said.code == 2
    assert "use -" in said.err or "--out - > /dev/null" in said.err


@pytest.mark.parametrize("name", ["_manifest.json", "_failures.ndjson", "_harvester", "._manifest.json.tmp"])
def test_a_folder_where_a_file_is_due_and_a_file_where_a_folder_is_due(
    quick_path: Path, run: Callable[..., Said], name: str
) -> None:
    out = quick_path / "out"
    if name == "_harvester":
        out.mkdir()
        (out / name).touch()
    else:
        assert run(out, "--max-calls", "1").code == 9
        (out / name).unlink(missing_ok=True)
        (out / name).mkdir()
    said = run(out)
    assert said.code == 8
    assert str(out / name) in said.err
    assert "Traceback" not in said.err


def test_a_link_to_a_folder_that_is_not_there_is_refused(quick_path: Path, run: Callable[..., Said]) -> None:
    (quick_path / "out").symlink_to(quick_path / "nowhere")
    said = run(quick_path / "out")
    assert said.code == 2
    assert "which does not exist" in said.err
    assert not (quick_path / "nowhere").exists()
