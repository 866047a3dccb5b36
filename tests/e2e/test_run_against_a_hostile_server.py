"""What comes of a call whatever the server does: the real command against a scripted Bitly."""

import json
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from harvester.bitly.facets import BODY_LIMIT
from harvester.bitly.query import MAX_CONNECTIONS
from harvester.bitly.verdicts import KEPT_BODY
from tests.support.commands import NO_LIMITS, TOKEN, harvester
from tests.support.output_checks import failures, manifest, rows
from tests.support.scripted_bitly import HTML, MIB, SEPARATED, Scripted, bomb, metrics_of, scripted

QUICK = ("--timeout", "2s")

ROWS = (
    "ok",
    "503x1-then-ok",
    "504x1-then-ok",
    "torn-x1-then-ok",
    "torn-gzip-x1-then-ok",
    "reset-x1-then-ok",
    "hangup-x1-then-ok",
    "html-x1-then-ok",
    "pretty",
    "separators",
    "gzip",
    "gzip-in-two",
    "deflate",
    "cookie",
    "doubled-x1-then-ok",
    "early-hints",
)
REFUSED = {
    "403-resource": (403, "FORBIDDEN"),
    "404": (404, "NOT_FOUND"),
    "404-plain": (404, "404 page not found"),
    "410": (410, "GONE"),
    "400-bitlink": (400, "INVALID_ARG_BITLINK"),
    "400-field": (400, "INVALID_REQUEST"),
}
TRANSIENT = {
    "408": 408,
    "425": 425,
    "520": 520,
    "500-for-ever": 500,
    "502": 502,
    "504": 504,
    "reset": None,
    "hangup": None,
    "torn": None,
    "torn-gzip": 200,
    "not-http": None,
    "slow": None,
    "silent": None,
}
UNREADABLE = {
    "html": HTML,
    "list": "[]",
    "null": "null",
    "empty-body": "",
    "empty-object": "{}",
    "clicks-string": '{"metrics":',
    "clicks-true": '{"metrics":',
    "clicks-negative": '{"metrics":',
    "nan": '{"metrics":',
    "bigint": '{"metrics":',
    "past-int64": '{"metrics":',
    "other-facet": '{"metrics":',
    "deep": "[[[[",
    "not-gzip": "",
    "brotli": "",
}
UNKNOWN = {
    "204": (204, ""),
    "redirect": (302, "elsewhere"),
    "400-other": (400, '{"message": "WHO_KNOWS"}'),
    "403-html": (403, HTML),
    "404-html": (404, HTML),
    "407": (407, ""),
    "418": (418, "I am a teapot. " * 300),
    "418-separators": (418, SEPARATED),
}
FAILED = (*TRANSIENT, *UNREADABLE, *UNKNOWN)
GOOD = [f"ok--{i}" for i in range(3 * len(FAILED))]


class Run(NamedTuple):
    """A command that has ended, where it wrote, and whom it asked."""

    done: CompletedProcess[str]
    out: Path
    bitly: Scripted

    @property
    def code(self) -> int:
        return self.done.returncode

    def failure(self, back_half: str) -> dict[str, Any]:
        """The only line on a link's failure."""
        (line,) = (line for line in failures(self.out) if line["bitlink"] == f"bit.ly/{back_half}")
        return line

    def metrics(self) -> dict[str, Any]:
        """What was published, by back-half."""
        return {row["bitlink"].removeprefix("bit.ly/"): row["metrics"] for row in rows(self.out)}


def run(
    bitly: Scripted, folder: Path, *back_halves: str, attempts: int = 2, options: tuple[str, ...] = (), **more: Any
) -> Run:
    links = folder / "links.txt"
    links.write_text("".join(f"bit.ly/{back_half}\n" for back_half in back_halves))
    out = folder / "out"
    command = ("run", str(links), "--out", str(out), "--base-url", bitly.url, *NO_LIMITS, *QUICK)
    return Run(harvester(*command, "--attempts", str(attempts), *options, **more), out, bitly)


def many(behaviour: str, count: int) -> list[str]:
    return [f"{behaviour}--{i}" for i in range(count)]


def sole_object(line: str) -> dict[str, Any]:
    """Parse a line as a JSON object without NaN, Infinity or a key that comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def never(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(line, object_pairs_hook=once, parse_constant=never)
    assert isinstance(found, dict)
    return found


def check_ndjson(text: str) -> None:
    """Every reader finds the same lines, and each is one object."""
    *lines, rest = text.split("\n")
    assert rest == ""
    assert text.splitlines() == lines
    for line in lines:
        sole_object(line)


def check_token_is_nowhere(run: Run) -> None:
    """The token is in no file, private ones included, and was not printed; error messages are put into upper case."""
    written = {str(path): path.read_bytes() for path in run.out.rglob("*") if path.is_file()}
    assert len(written) > 3
    printed = {"stdout": run.done.stdout.encode(), "stderr": run.done.stderr.encode()}
    assert [name for name, data in {**written, **printed}.items() if TOKEN.encode() in data.lower()] == []


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


# --- one run with everything that a run survives ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["auto", pytest.param("session", marks=pytest.mark.nightly)])
def mixed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Run]:
    options = ("--transport", request.param)
    with scripted() as server:
        # Those that fail stand among good ones: where nearly all fail it would be the server.
        among = [name for i, failed in enumerate(FAILED) for name in (failed, *GOOD[3 * i : 3 * i + 3])]
        yield run(server, tmp_path_factory.mktemp("mixed"), *ROWS, *REFUSED, *among, options=options)


def test_a_run_through_everything_at_once_finishes_and_says_that_some_failed(mixed: Run) -> None:
    assert mixed.code == 3, mixed.done.stderr
    assert mixed.done.stdout == ""
    assert "Traceback" not in mixed.done.stderr
    assert not (mixed.out / "_SUCCESS").exists()


def test_the_counts_of_a_run_through_everything_reconcile(mixed: Run) -> None:
    counts = {"rows": len(ROWS) + len(GOOD), "refused": len(REFUSED), "failed": len(FAILED), "pending": 0}
    said = manifest(mixed.out)
    assert said["dataset"] == {
        "calls": sum(counts.values()),
        **counts,
        "truncated": 0,
        "clipped": 0,
        "idle": 0,
        "refreshed": 0,
    }
    assert said["list"]["links"] == said["dataset"]["calls"]
    assert said["stopped"] is None
    assert len(rows(mixed.out)) == counts["rows"] == len(mixed.metrics())
    assert len(failures(mixed.out)) == counts["refused"] + counts["failed"]


def test_every_link_has_its_own_answer_in_its_row(mixed: Run) -> None:
    assert mixed.metrics() == {back_half: metrics_of(back_half) for back_half in (*ROWS, *GOOD)}


@pytest.mark.parametrize("back_half", REFUSED)
def test_a_definite_no_is_asked_once_and_refused(mixed: Run, back_half: str) -> None:
    status, message = REFUSED[back_half]
    line = mixed.failure(back_half)
    assert (line["kind"], line["status"], line["message"], line["attempts"]) == ("refused", status, message, 1)
    assert len(mixed.bitly.visits(back_half)) == 1


@pytest.mark.parametrize("back_half", TRANSIENT)
def test_a_transient_answer_is_asked_for_until_the_attempts_are_used_up(mixed: Run, back_half: str) -> None:
    line = mixed.failure(back_half)
    assert (line["kind"], line["status"], line["attempts"]) == ("failed", TRANSIENT[back_half], 2)
    assert line["message"]
    assert len(mixed.bitly.visits(back_half)) == 2


@pytest.mark.parametrize("back_half", UNREADABLE)
def test_an_unreadable_200_is_asked_for_twice_and_its_beginning_kept(mixed: Run, back_half: str) -> None:
    line = mixed.failure(back_half)
    assert (line["kind"], line["status"], line["attempts"]) == ("failed", 200, 2)
    assert line["body"].startswith(UNREADABLE[back_half][:KEPT_BODY])
    assert len(line["body"]) <= KEPT_BODY
    assert len(mixed.bitly.visits(back_half)) == 2


@pytest.mark.parametrize("back_half", UNKNOWN)
def test_an_unknown_answer_is_asked_once_failed_and_its_beginning_kept(mixed: Run, back_half: str) -> None:
    status, body = UNKNOWN[back_half]
    line = mixed.failure(back_half)
    assert (line["kind"], line["status"], line["attempts"]) == ("failed", status, 1)
    assert line["body"] == body.encode()[:KEPT_BODY].decode(errors="replace")
    assert len(mixed.bitly.visits(back_half)) == 1


def test_every_request_that_was_sent_is_counted(mixed: Run) -> None:
    assert manifest(mixed.out)["attempts"]["total"] == len(mixed.bitly.requests)


def test_a_redirect_is_not_followed(mixed: Run) -> None:
    assert mixed.bitly.visits("redirect")
    assert mixed.bitly.elsewhere_heard == []


def test_there_are_never_more_than_five_connections(mixed: Run) -> None:
    assert 1 < mixed.bitly.most_connections <= MAX_CONNECTIONS


def test_each_line_is_one_json_object_for_every_reader(mixed: Run) -> None:
    for path in mixed.out.glob("*.ndjson"):
        check_ndjson(path.read_bytes().decode())


def test_the_token_is_in_no_output(mixed: Run) -> None:
    check_token_is_nowhere(mixed)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_connection_given_up_is_closed_before_another_is_opened(tmp_path: Path) -> None:
    """Under TLS, too, where an orderly farewell takes a round trip or longer."""
    certificate = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with scripted(tls) as bitly:
        done = run(bitly, tmp_path, *many("deaf", 6), "ok", attempts=1, env={"SSL_CERT_FILE": str(certificate)})
    assert done.code == 3, done.done.stderr
    assert manifest(done.out)["dataset"]["rows"] == 1


def self_signed(folder: Path) -> Path:
    """Make a key and a certificate for 127.0.0.1, both in one file."""
    file = folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(file),
        "-out",
        "-",
        "-days",
        "2",
    ]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = subprocess.run([*command, *name], check=True, capture_output=True).stdout
    file.write_bytes(file.read_bytes() + made)
    return file


# --- attempts and waiting -----------------------------------------------------------------------------------------


def test_attempts_may_be_more_than_two(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, "ok", "503x2-then-ok", "500-for-ever", attempts=3)
    assert done.code == 3, done.done.stderr
    assert sorted(done.metrics()) == ["503x2-then-ok", "ok"]
    assert done.failure("500-for-ever")["attempts"] == len(bitly.visits("500-for-ever")) == 3


def test_an_unreadable_200_is_asked_twice_however_many_attempts_there_are(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, "ok", "html", attempts=5)
    assert done.code == 3, done.done.stderr
    assert len(bitly.visits("html")) == 2


@pytest.mark.parametrize("form", ["429", "429-unknown", "403-throttled", "403-reason"])
def test_every_form_of_throttling_is_charged_to_no_call(bitly: Scripted, tmp_path: Path, form: str) -> None:
    name = f"{form}-x2-then-ok"
    done = run(bitly, tmp_path, name, attempts=1)
    assert done.code == 0, done.done.stderr
    assert list(done.metrics()) == [name]
    assert len(bitly.visits(name)) == 3
    assert manifest(done.out)["attempts"] == {"total": 3, "retried": 0, "throttled": 2, "helper": 0}


def test_throttled_answers_are_not_among_a_failed_calls_attempts(bitly: Scripted, tmp_path: Path) -> None:
    name = "503x1-then-429x1-then-500-for-ever"
    done = run(bitly, tmp_path, name, *many("ok", 40))  # others are answered, so it fails by itself
    assert done.code == 3, done.done.stderr
    assert done.failure(name)["attempts"] == 2
    assert len(bitly.visits(name)) == 3


def test_everyone_waits_as_long_as_a_throttled_answer_asks(bitly: Scripted, tmp_path: Path) -> None:
    """Then one goes ahead, and the others follow if it passes: one such answer teaches nothing."""
    done = run(bitly, tmp_path, "ok", "429x1-then-ok", *many("ok", 9))
    assert done.code == 0, done.done.stderr
    first = bitly.visits("429x1-then-ok")[0]
    later = [seen for seen in bitly.requests if seen.at > first.at + 0.5]  # the others were under way
    assert later[0].at - first.at >= 1.0
    assert later[-1].at - later[0].at < 10.0
    assert manifest(done.out)["budget"]["windows"][0]["source"] != "throttled"


def test_what_a_second_throttled_answer_teaches_holds_everyone_for_the_rest_of_a_minute(
    bitly: Scripted, tmp_path: Path
) -> None:
    names = ("ok", "429x2-then-ok", *many("ok", 9))
    done = run(bitly, tmp_path, *names, options=("--max-time", "6s", "--connections", "1"))
    assert done.code == 9, done.done.stderr
    assert len(bitly.requests) == 4  # the second was the probe
    budget = manifest(done.out)["budget"]
    assert budget["windows"][0]["source"] == "throttled"
    assert budget["limited_by"]["window"] in {"pace", "minute"}


def test_throttling_without_a_hint_closes_the_gate_until_an_early_probe_and_then_the_next_minute(
    bitly: Scripted, tmp_path: Path
) -> None:
    began_at, began = time.time(), time.monotonic()
    done = run(
        bitly,
        tmp_path,
        "429-bare",
        *many("ok", 9),
        options=("--connections", "1", "--max-time", "3s"),
    )
    assert done.code == 9, done.done.stderr
    first, second, *later = bitly.requests
    assert second.at - first.at >= 1.5
    throttled_at = began_at + first.at - began
    edge = throttled_at + 60 - throttled_at % 60
    assert all(began_at + seen.at - began >= edge - 0.1 for seen in later)


def test_the_retry_after_of_a_transient_answer_is_waited_for(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, "503-hinted-x1-then-ok")
    assert done.code == 0, done.done.stderr
    first, second = bitly.requests
    assert second.at - first.at >= 1.0


def test_a_retry_after_beyond_the_calendar_is_ignored(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, "503-doomsday", attempts=1)
    assert done.code == 3, done.done.stderr
    assert done.failure("503-doomsday")["status"] == 503


@pytest.mark.slow
def test_in_an_outage_all_calls_wait_and_no_link_fails(bitly: Scripted, tmp_path: Path) -> None:
    names = many("down-for-2s", 40)
    done = run(bitly, tmp_path, *names)
    assert done.code == 0, done.done.stderr
    assert sorted(done.metrics()) == sorted(names)
    times = [seen.at for seen in bitly.requests]
    assert max(after - before for before, after in pairwise(times)) >= 4.5


# --- what ends the run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("back_half", "code", "reason"),
    [
        ("401", 6, "token_refused"),
        ("403-bare", 6, "token_refused"),
        ("402", 6, "plan_refused"),
        ("400-unit", 2, "parameter_refused"),
        ("429-month", 7, "month_spent"),
        ("429-monthly", 7, "month_spent"),
    ],
)
def test_an_answer_that_every_call_would_get_ends_the_run_at_once(
    bitly: Scripted, tmp_path: Path, back_half: str, code: int, reason: str
) -> None:
    bitly.everyone = lambda: back_half if len(bitly.requests) > 1 else None
    done = run(bitly, tmp_path, *many("ok", 9), options=("--connections", "1"))
    assert done.code == code, done.done.stderr
    assert [seen.back_half for seen in bitly.requests] == ["ok--0", "ok--1", "ok--0"]
    assert list(done.metrics()) == ["ok--0"]
    assert failures(done.out) == []
    assert manifest(done.out)["stopped"]["reason"] == reason
    assert "stopped: " in done.done.stderr
    assert not (done.out / "_SUCCESS").exists()


def test_a_stopped_run_carries_on_without_asking_twice(bitly: Scripted, tmp_path: Path) -> None:
    names = (*many("ok", 6), "404", *many("ok--more", 6))
    bitly.everyone = lambda: "401" if len(bitly.requests) > 8 else None
    assert run(bitly, tmp_path, *names, options=("--connections", "1")).code == 6
    known_good, stopped = bitly.requests[9].back_half, bitly.requests[8].back_half
    bitly.everyone = lambda: None
    again = run(bitly, tmp_path, *names, options=("--connections", "1"))
    assert again.code == 0, again.done.stderr
    twice = {known_good, stopped}
    assert {name: len(bitly.visits(name)) for name in names} == {name: 1 + (name in twice) for name in names}
    assert len(rows(again.out)) == len(names) - 1


def test_a_failed_call_is_asked_again_by_the_next_run_and_a_refused_one_is_not(bitly: Scripted, tmp_path: Path) -> None:
    names = ("418x1-then-ok", "404", "ok")
    assert run(bitly, tmp_path, *names).code == 3
    again = run(bitly, tmp_path, *names)
    assert again.code == 0, again.done.stderr
    assert [len(bitly.visits(name)) for name in names] == [2, 1, 1]
    assert [line["kind"] for line in failures(again.out)] == ["refused"]
    assert (again.out / "_SUCCESS").exists()


def test_fifty_first_calls_all_refused_alike_end_the_run(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, *many("404", 80))
    assert done.code == 4, done.done.stderr
    assert manifest(done.out)["stopped"]["reason"] == "all_refused"
    assert 50 <= len(bitly.requests) <= 55


def test_twenty_first_calls_to_unknown_routes_end_the_run(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, *many("404-plain", 40))
    assert done.code == 2, done.done.stderr
    assert manifest(done.out)["stopped"]["reason"] == "no_route"
    assert 20 <= len(bitly.requests) <= 25
    assert "--base-url" in done.done.stderr


def test_unknown_routes_after_a_first_row_are_refusals(bitly: Scripted, tmp_path: Path) -> None:
    done = run(bitly, tmp_path, "ok", *many("404-plain", 30), options=("--connections", "1"))
    assert done.code == 0, done.done.stderr
    assert manifest(done.out)["dataset"]["refused"] == 30


@pytest.mark.parametrize("back_half", ["html", "403-html", "520", "redirect"])
def test_a_page_that_answers_instead_of_bitly_is_an_outage(bitly: Scripted, tmp_path: Path, back_half: str) -> None:
    done = run(bitly, tmp_path, *many(back_half, 60), options=("--outage-limit", "1s"))
    assert done.code == 5, done.done.stderr
    assert manifest(done.out)["stopped"]["reason"] == "outage"
    said = {"html": "200 ", "403-html": "HTTP 403", "520": "520 ", "redirect": "HTTP 302"}[back_half]
    assert f"Lately: {said}" in done.done.stderr
    assert len(bitly.requests) < 30
    assert failures(done.out) == []


# --- what must not get in, or out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("back_half", ["418-echo", "400-echo", "html-echo"])
def test_a_token_that_the_server_sends_back_is_kept_nowhere(bitly: Scripted, tmp_path: Path, back_half: str) -> None:
    done = run(bitly, tmp_path, back_half, "ok")
    assert done.code == 3, done.done.stderr
    assert done.failure(back_half)["kind"] == "failed"
    check_token_is_nowhere(done)


def test_an_unsolicited_answer_becomes_no_row(bitly: Scripted, tmp_path: Path) -> None:
    """Nor does the answer before it: which of the two was asked for cannot be known."""
    names = ("doubled-x1-then-ok", *many("ok", 5))
    done = run(bitly, tmp_path, *names, "doubled", options=("--connections", "1"))
    assert done.metrics() == {name: metrics_of(name) for name in names}, done.done.stderr
    assert done.failure("doubled")["kind"] == "failed"


def test_a_filters_standard_output_is_one_json_object_a_line(bitly: Scripted) -> None:
    done = filtered(bitly, "separators", "pretty", "418-separators", *many("ok", 3))
    assert done.returncode == 3, done.stderr
    check_ndjson(done.stdout)
    assert len(done.stdout.splitlines()) == 5


def test_nothing_that_bitly_says_reaches_the_terminal_unescaped(bitly: Scripted) -> None:
    done = filtered(bitly, "418-coloured", "402-coloured--1", "402-coloured--2", "ok")
    assert done.returncode == 6, done.stderr
    assert [c for c in done.stderr if not c.isprintable() and c != "\n"] == []


def filtered(bitly: Scripted, *back_halves: str) -> CompletedProcess[str]:
    stdin = "".join(f"bit.ly/{back_half}\n" for back_half in back_halves).encode()
    command = ("run", "-", "--out", "-", "--base-url", bitly.url, *NO_LIMITS, *QUICK)
    return harvester(*command, "--connections", "1", "--attempts", "2", stdin=stdin)


# --- memory -------------------------------------------------------------------------------------------------------

_MEASURE = (
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:])\n"
    "print('most memory:', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    "sys.exit(code)\n"
)
"""Run a command from a small process: a fork's memory counts its parent's."""


def most_memory_bytes(done: Run) -> int:
    found = re.search(r"most memory: (\d+)", done.done.stderr)
    assert found, done.done.stderr
    return int(found[1]) * (1 if sys.platform == "darwin" else 1024)  # getrusage(2): bytes there, KiB here


@pytest.mark.slow
@pytest.mark.parametrize("back_half", ["huge", "huge-chunked", "bomb"])
def test_a_body_without_end_is_unreadable_and_fills_no_memory(bitly: Scripted, tmp_path: Path, back_half: str) -> None:
    bomb()  # made beforehand: it takes longer than the client waits
    done = run(bitly, tmp_path, *many(back_half, 5), "ok", wrapper=(sys.executable, "-c", _MEASURE))
    assert done.code == 3, done.done.stderr
    line = done.failure(f"{back_half}--0")
    assert (line["kind"], line["status"], line["attempts"], len(line["body"])) == ("failed", 200, 2, KEPT_BODY)
    assert list(done.metrics()) == ["ok"]
    assert most_memory_bytes(done) < 150 * MIB
    assert bitly.poured < 10 * 3 * BODY_LIMIT  # ten attempts, and what the kernel takes on the way


@pytest.mark.slow
@pytest.mark.parametrize("back_half", ["huge-418", "gzip-and-tail"])
def test_what_follows_a_body_fills_no_memory(bitly: Scripted, tmp_path: Path, back_half: str) -> None:
    done = run(bitly, tmp_path, *many(back_half, 5), "ok", wrapper=(sys.executable, "-c", _MEASURE))
    assert done.code in {0, 3}, done.done.stderr
    assert most_memory_bytes(done) < 150 * MIB
    assert bitly.poured < 10 * 3 * BODY_LIMIT  # ten attempts, and what the kernel takes on the way
