"""What surrounds the command: standard streams that close or stall, proxies, named pipes, slow token commands."""

import gzip
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, environment, harvester, start
from tests.support.output_checks import manifest, rows

LINKS = "".join(f"bit.ly/{i}\n" for i in range(300))


def shell(script: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is the harvester command."""
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "harvester", *arguments]
    return subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text(LINKS + "nonsense\n")
    return str(path)


def command_for(links: str, out: Path, served: Served, *more: str) -> list[str]:
    return ["run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS, *more]


@pytest.mark.parametrize("script", ['"$@" 2> >(exec true); exit $?', '"$@" 2>/dev/full', '"$@" 2>&-', '"$@" >&- 2>&-'])
def test_an_unread_stderr_changes_nothing(
    tmp_path: Path, links: str, serve: Callable[..., Served], script: str
) -> None:
    served, out = serve(), tmp_path / "out"
    assert shell(script, *command_for(links, out, served, "--max-calls", "20")).returncode == 9
    assert len(rows(out)) == 20
    assert shell(script, *command_for(links, out, served)).returncode == 0
    assert len(rows(out)) == 300


def test_a_signal_is_obeyed_when_stderr_is_not_read(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    served, out = serve(latency_ms=50), tmp_path / "out"
    with start(*command_for(links, out, served)) as process:
        assert process.stderr
        process.stderr.close()
        while served.sandbox.answered.total() < 10:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 5


def test_a_paused_reader_of_stdout_does_not_hold_up_the_end(serve: Callable[..., Served]) -> None:
    served = serve()
    arguments = ["run", "-", "--out", "-", "--base-url", served.url, *NO_LIMITS]
    with start(*arguments, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(LINKS.encode() * 1)
        process.stdin.write("".join(f"bit.ly/more-{i}\n" for i in range(3000)).encode())
        process.stdin.close()
        while served.sandbox.answered.total() < 500:  # far more than a pipe holds
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in {5, 8}
        assert process.stdout
        process.stdout.read()


def test_this_machine_is_reached_without_a_proxy(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    done = harvester(*command_for(links, tmp_path / "out", serve()), env=proxy)
    assert done.returncode == 0, done.stderr


def test_a_proxy_variable_that_names_no_http_proxy_is_refused(tmp_path: Path, links: str) -> None:
    for proxy in ("socks5://127.0.0.1:9", "proxy.example:3128"):
        done = harvester("run", links, "--out", str(tmp_path / "out"), "--per-month", "0", env={"https_proxy": proxy})
        assert done.returncode == 2, done.stderr
        assert "HTTPS_PROXY" in done.stderr


def test_strict_holds_for_whatever_can_be_read_only_once(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    script = 'printf "bit.ly/a\\nbad\\n" | "$@"'
    for name in ("-", "/dev/stdin"):
        done = shell(script, *command_for(name, tmp_path / "out", served, "--strict"))
        assert done.returncode == 2, done.stderr
    piped = shell('exec "$@" --strict <(printf "bit.ly/a\\nbad\\n")', *command_for("-", tmp_path / "o", served)[0:1],
                  "--out", str(tmp_path / "o"), "--base-url", served.url, *NO_LIMITS)  # fmt: skip
    assert piped.returncode == 2, piped.stderr
    assert served.sandbox.requests.total() == 0
    assert not list(tmp_path.rglob("spool*"))


def test_a_gzipped_list_may_come_byte_by_byte(tmp_path: Path, serve: Callable[..., Served]) -> None:
    out, packed = tmp_path / "out", gzip.compress(b"bit.ly/a\nbit.ly/b\n")
    with start(*command_for("-", out, serve()), stdin=subprocess.PIPE) as process:
        assert process.stdin
        for position in range(len(packed)):
            process.stdin.write(packed[position : position + 1])
            process.stdin.flush()
            threading.Event().wait(0.001)
        process.stdin.close()
        assert process.wait(timeout=20) == 0
    assert len(rows(out)) == 2


def test_max_time_covers_what_comes_before_the_first_call(tmp_path: Path, serve: Callable[..., Served]) -> None:
    arguments = command_for("-", tmp_path / "out", serve(), "--strict", "--max-time", "1s")
    with start(*arguments, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=15) == 9


def test_a_signal_ends_the_count_before_the_first_call(tmp_path: Path, serve: Callable[..., Served]) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(400_000)))
    arguments = ("--out", str(tmp_path / "out"), "--base-url", serve().url, "--per-month", "1000000")
    with start("run", str(path), *arguments) as process:
        scratch = tmp_path / "out" / "_harvester" / "scratch.sqlite"
        while not scratch.exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 5
    assert not scratch.exists()


def test_a_success_that_no_longer_holds_is_taken_back(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    command = command_for("-", out, served)
    assert harvester(*command, stdin=b"bit.ly/a\n").returncode == 0
    assert (out / "_SUCCESS").exists()
    assert harvester(*command, stdin=b"").returncode == 2
    assert not manifest(out)["complete"]
    assert not (out / "_SUCCESS").exists()


def test_a_failing_token_command_after_a_refusal_ends_with_6(tmp_path: Path, links: str) -> None:
    once = tmp_path / "once"
    command = f"sh -c 'test ! -e {once} && touch {once} && echo revoked'"
    with_sandbox = (
        "import asyncio, subprocess, sys\n"
        "from harvester.sandbox import *\n"
        "async def go():\n"
        "    async with serving(Sandbox(SandboxOptions(latency_ms=0, errors=0))) as url:\n"
        "        p = await asyncio.create_subprocess_exec(*sys.argv[1:], '--base-url', url)\n"
        "        return await p.wait()\n"
        "sys.exit(asyncio.run(go()))\n"
    )
    arguments = ["-m", "harvester", "run", links, "--out", str(tmp_path / "out"), *NO_LIMITS]
    done = subprocess.run(
        [sys.executable, "-c", with_sandbox, sys.executable, *arguments, "--token-command", command],
        env=environment(), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_is_taken_away_ends_with_8(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    served, out = serve(latency_ms=50), tmp_path / "out"
    with start(*command_for(links, out, served)) as process:
        while served.sandbox.answered.total() < 10:
            time.sleep(0.002)
        out.rename(tmp_path / "elsewhere")
        assert process.wait(timeout=20) == 8
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()


def test_numbers_that_are_too_large_are_refused(tmp_path: Path, links: str) -> None:
    for option in ("--units", "--size", "--per-hour"):
        done = harvester("run", links, "--out", str(tmp_path / "out"), option, "9" * 20)
        assert done.returncode == 2
        assert option in done.stderr


@pytest.mark.slow
def test_an_outage_ends_by_itself_while_the_list_is_silent(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(errors=1.0), tmp_path / "out"
    with start(*command_for("-", out, served), stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write("".join(f"bit.ly/{i}\n" for i in range(25)).encode())
        process.stdin.flush()
        while served.sandbox.requests.total() < 20:
            time.sleep(0.002)
        served.sandbox.options = replace(served.sandbox.options, errors=0.0)
        while served.sandbox.answered.total() < 25:
            assert process.poll() is None
            time.sleep(0.002)
        process.stdin.close()
        assert process.wait(timeout=20) == 0
    assert len(rows(out)) == 25
    assert served.sandbox.requests.total() < 25 + 60


@pytest.mark.slow
def test_a_list_that_fails_as_a_whole_during_an_outage_has_no_failed_links(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, out = serve(errors=1.0), tmp_path / "out"
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(22)))
    with start(*command_for(str(path), out, served)) as process:
        while served.sandbox.requests.total() < 22:
            time.sleep(0.002)
        served.sandbox.options = replace(served.sandbox.options, errors=0.0)
        assert process.wait(timeout=60) == 0
    assert len(rows(out)) == 22
