"""harvester from Python, in a running loop: what is given, what comes, what is raised, and what is left behind."""

import ast
import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

import harvester
from harvester.config.keywords import HarvestKeywords, StreamKeywords, run_options
from harvester.config.options import AccessOptions, RunOptions
from harvester.parameters import names_in
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN, environment
from tests.support.commands import harvester as command
from tests.support.output_checks import check_reconciled, expected_metrics, failures, manifest, rows
from tests.support.scripted_bitly import scripted

AHEAD = 1500
"""Links that may be read before they are asked for."""
MOST_UNREAD = 400
"""Rows that may have been asked for before a slow reader takes them."""


def options(url: str, **more: Any) -> Any:
    return {"token": TOKEN, "base_url": url, "per_minute": 0, "per_hour": 0, "per_month": 0, **more}


def endless() -> Iterator[str]:
    number = 0
    while True:
        yield f"bit.ly/{number}"
        number += 1


async def endless_later() -> AsyncIterator[str]:
    for link in endless():
        yield link


# --- one link -------------------------------------------------------------------------------------------------------


async def test_metrics_gives_the_row_that_run_writes(serve: Callable[..., Served]) -> None:
    url = serve().url
    row = await harvester.metrics("https://bit.ly/3lU6hRt", **options(url, unit_reference="2026-11-01"))
    written = command(
        "run", "-", "--out", "-", "--base-url", url, "--unit-reference", "2026-11-01", stdin=b"bit.ly/3lU6hRt\n"
    )
    expected = json.loads(written.stdout)
    for own in ("run_id", "fetched_at"):
        row.pop(own), expected.pop(own)
    assert row == expected


async def test_text_that_is_not_a_bitlink_is_refused_before_any_call(serve: Callable[..., Served]) -> None:
    served = serve()
    with pytest.raises(harvester.InvalidBitlink, match="no slash"):
        await harvester.metrics("nonsense", **options(served.url))
    assert not served.sandbox.requests


async def test_a_refused_link_and_a_failed_one_raise_errors_that_tell_them_apart() -> None:
    with scripted() as bitly:
        await harvester.metrics("bit.ly/ok", **options(bitly.url))
        with pytest.raises(harvester.LinkRefused) as refused:
            await harvester.metrics("bit.ly/404", **options(bitly.url))
        with pytest.raises(harvester.LinkFailed) as failed:
            await harvester.metrics("bit.ly/418", **options(bitly.url))
    assert (refused.value.bitlink, refused.value.status, refused.value.message) == ("bit.ly/404", 404, "NOT_FOUND")
    assert str(refused.value) == "bit.ly/404: 404 NOT_FOUND"
    assert failed.value.status == 418
    assert isinstance(failed.value, harvester.NoRow)


async def test_a_refused_token_raises_why_the_run_was_stopped(serve: Callable[..., Served]) -> None:
    with pytest.raises(harvester.RunStopped, match="Settings > API") as stopped:
        await harvester.metrics("bit.ly/a", **options(serve().url, token="revoked"))
    assert stopped.value.reason == "token_refused"


async def test_a_spent_month_raises_until_when(serve: Callable[..., Served]) -> None:
    given = options(serve().url, per_month=1)
    await harvester.metrics("bit.ly/a", **given)
    with pytest.raises(harvester.RunStopped) as stopped:
        await harvester.metrics("bit.ly/b", **given)
    assert stopped.value.reason == "month_spent"
    assert stopped.value.until is not None
    assert datetime.fromisoformat(stopped.value.until) > datetime.now(UTC)


async def test_many_at_once_take_turns(serve: Callable[..., Served]) -> None:
    served = serve(latency_ms=5)
    names = [f"bit.ly/{i}" for i in range(12)]
    found = await asyncio.gather(*(harvester.metrics(name, **options(served.url)) for name in names))
    assert [row["bitlink"] for row in found] == names
    assert served.sandbox.too_many_connections == 0


async def test_a_link_takes_one_connection(tmp_path: Path, serve: Callable[..., Served]) -> None:
    await harvester.metrics("bit.ly/a", **options(serve().url, state_dir=tmp_path))
    assert [path.name for path in tmp_path.glob("connections/*/slot-*")] == ["slot-0"]


async def test_a_token_that_is_at_hand_starts_no_thread(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(serve().url)
    started: list[str] = []
    start = threading.Thread.start

    def record(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", record)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    await harvester.metrics("bit.ly/a", **given)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    await harvester.metrics("bit.ly/a", **given | {"token": None})
    await harvester.metrics("bit.ly/a", **given | {"token": None}, token_file=tmp_path / "token")
    assert started == []
    await harvester.metrics("bit.ly/a", **given | {"token": lambda: TOKEN})
    assert len(started) == 1


@pytest.mark.parametrize("source", ["callable", "pipe", "command"])
async def test_a_token_that_has_to_be_waited_for_leaves_the_loop_free(
    tmp_path: Path, serve: Callable[..., Served], source: str
) -> None:
    os.mkfifo(pipe := tmp_path / "token", 0o600)
    given: dict[str, dict[str, Any]] = {
        "callable": {"token": pipe.read_text},
        "pipe": {"token": None, "token_file": pipe},
        "command": {"token": None, "token_command": f"cat {pipe}"},
    }
    waiting = asyncio.create_task(harvester.metrics("bit.ly/a", **options(serve().url) | given[source]))
    # It blocks until somebody reads; where the loop itself read, this line would never be reached.
    await asyncio.to_thread(pipe.write_text, TOKEN)
    assert (await waiting)["bitlink"] == "bit.ly/a"


# --- a harvest ------------------------------------------------------------------------------------------------------


async def test_harvest_gives_the_manifest_and_resumes(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    links = [f"https://bit.ly/{i}" for i in range(20)]
    given = await harvester.harvest(links[:10], out=out, **options(served.url))
    assert given == manifest(out)
    assert given["complete"]
    again = await harvester.harvest(links, out=str(out), **options(served.url))
    assert again["dataset"]["rows"] == 20
    assert max(served.sandbox.requests.values()) == 1
    check_reconciled(out, {f"bit.ly/{i}" for i in range(20)})


async def two_later() -> AsyncIterator[str]:
    yield "bit.ly/a"
    yield "bit.ly/b"


@pytest.mark.parametrize(
    "links",
    [
        str,
        lambda path: path,
        lambda path: [path],
        lambda path: (path, path),
        lambda _: ["bit.ly/a", "bit.ly/b"],
        lambda _: {"bit.ly/a", "bit.ly/b"},
        lambda _: {"bit.ly/a": 1, "bit.ly/b": 2}.keys(),
        lambda _: (f"bit.ly/{name}" for name in "ab"),
        lambda _: two_later(),
    ],
    ids=["str", "path", "paths", "tuple of paths", "list", "set", "keys", "generator", "asynchronous generator"],
)
async def test_links_are_a_path_or_whatever_gives_links(
    tmp_path: Path, serve: Callable[..., Served], links: Callable[[Path], Any]
) -> None:
    path = tmp_path / "links.txt"
    path.write_text("bit.ly/a\nbit.ly/b\n")
    given = await harvester.harvest(links(path), out=tmp_path / "out", **options(serve().url))
    assert given["complete"]
    assert {row["bitlink"] for row in rows(tmp_path / "out")} == {"bit.ly/a", "bit.ly/b"}


async def test_invalid_links_are_reported_by_their_number(tmp_path: Path, serve: Callable[..., Served]) -> None:
    links: Any = ["bit.ly/a", None, "", "nonsense", "\ud800", "bit.ly/b\nbit.ly/c", b"bit.ly/d", "x" * 70_000]
    given = await harvester.harvest(links, out=tmp_path / "out", **options(serve().url))
    found = sorted(
        (line["file"], line["line"], line["message"].partition(":")[0]) for line in failures(tmp_path / "out")
    )
    assert [(file, line) for file, line, _ in found] == [("<links>", number) for number in (2, 4, 5, 6, 7, 8)]
    assert found[0][2] == "must be text, not NoneType"
    listed = given["list"]
    assert (listed["lines"], listed["blank"], listed["invalid"], listed["links"]) == (8, 1, 6, 1)


@pytest.mark.parametrize("links", [5, None, b"bit.ly/a"])
async def test_an_argument_that_yields_no_links_is_refused(tmp_path: Path, links: Any) -> None:
    with pytest.raises(harvester.UsageError, match="an iterable of links"):
        await harvester.harvest(links, out=tmp_path / "out", token=TOKEN)


async def test_a_link_where_a_path_was_expected_is_explained(tmp_path: Path) -> None:
    with pytest.raises(harvester.UsageError, match=r'pass \["bit\.ly/a"\]'):
        await harvester.harvest("bit.ly/a", out=tmp_path / "out", token=TOKEN)


async def test_a_run_that_was_stopped_gives_its_manifest_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    given = await harvester.harvest(endless(), out=tmp_path / "out", **options(serve().url, max_calls=7))
    assert given["stopped"]["reason"] == "max_calls"
    assert not given["complete"]
    assert given["dataset"]["rows"] == 7


async def test_strict_refuses_given_links_before_any_call(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    with pytest.raises(harvester.UsageError, match="1 of 2 lines"):
        await harvester.harvest(["bit.ly/a", "nonsense"], out=tmp_path / "out", **options(served.url, strict=True))
    assert not served.sandbox.requests
    given = await harvester.harvest(two_later(), out=tmp_path / "out", **options(served.url, strict=True))
    assert given["complete"]


async def test_an_output_in_use_is_busy_within_one_process_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    given = options(serve(latency_ms=20).url)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(harvester.harvest(endless(), out=tmp_path / "out", max_calls=50, **given))
        while not (tmp_path / "out/_harvester/ledger.sqlite").exists():
            await asyncio.sleep(0)
        with pytest.raises(harvester.DatasetBusy):
            await harvester.harvest(["bit.ly/a"], out=tmp_path / "out", **given)
    assert first.result()["dataset"]["rows"] == 50


async def test_two_harvests_of_a_process_share_the_month_and_the_connections(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve(latency_ms=10)
    given = options(served.url, per_month=60)
    found = await asyncio.gather(
        harvester.harvest((f"bit.ly/a{i}" for i in range(50)), out=tmp_path / "a", **given),
        harvester.harvest((f"bit.ly/b{i}" for i in range(50)), out=tmp_path / "b", **given),
    )
    assert served.sandbox.requests.total() == 60
    assert {each["stopped"] and each["stopped"]["reason"] for each in found} >= {"month_spent"}
    assert served.sandbox.too_many_connections == 0


async def test_the_command_counts_into_the_same_budget(serve: Callable[..., Served]) -> None:
    url = serve().url
    await harvester.metrics("bit.ly/a", **options(url, per_month=1))
    done = command("show", "bit.ly/b", "--base-url", url, "--per-month", "1")
    assert done.returncode == 7


async def test_an_output_that_cannot_be_written_raises(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(harvester.UsageError):
        await harvester.harvest(["bit.ly/a"], out=tmp_path / "file", **options(serve().url))
    with pytest.raises(harvester.OutputError):
        await harvester.harvest(["bit.ly/a"], out=tmp_path / "file/out", **options(serve().url))
    for nothing in ("", 5, None):
        wrong: Any = nothing
        with pytest.raises(harvester.UsageError, match="must be a "):
            await harvester.harvest(["bit.ly/a"], out=wrong, **options(serve().url))
    with pytest.raises(harvester.UsageError, match="stream"):
        await harvester.harvest(["bit.ly/a"], out="-", **options(serve().url))


# --- links that come lazily -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iterable", "asynchronous"])
async def test_endless_links_are_read_only_a_little_ahead(
    tmp_path: Path, serve: Callable[..., Served], kind: str
) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for link in endless():
            read += 1
            yield link

    async def counted_later() -> AsyncIterator[str]:
        for link in counted():
            yield link

    links = counted() if kind == "iterable" else counted_later()
    given = options(serve().url, max_calls=20, per_minute=1000)
    await harvester.harvest(links, out=tmp_path / "out", **given)
    assert 20 <= read <= 20 + AHEAD


@pytest.mark.parametrize("kind", ["iterable", "asynchronous"])
async def test_a_link_is_asked_for_before_the_next_one_comes(
    tmp_path: Path, serve: Callable[..., Served], kind: str
) -> None:
    served = serve()

    def slow() -> Iterator[str]:
        yield "bit.ly/a"
        while not served.sandbox.answered["bit.ly/a"]:
            time.sleep(0.002)
        yield "bit.ly/b"

    async def slow_later() -> AsyncIterator[str]:
        yield "bit.ly/a"
        while not served.sandbox.answered["bit.ly/a"]:
            await asyncio.sleep(0)
        yield "bit.ly/b"

    links = slow() if kind == "iterable" else slow_later()
    given = await harvester.harvest(links, out=tmp_path / "out", **options(served.url))
    assert given["dataset"]["rows"] == 2


@pytest.mark.parametrize("kind", ["iterable", "asynchronous"])
async def test_what_the_links_raise_is_raised_when_all_that_came_before_is_published(
    tmp_path: Path, serve: Callable[..., Served], kind: str
) -> None:
    def broken() -> Iterator[str]:
        yield from (f"bit.ly/{i}" for i in range(10))
        raise LookupError("the cursor is gone")

    async def broken_later() -> AsyncIterator[str]:
        for link in broken():
            yield link

    links = broken() if kind == "iterable" else broken_later()
    with pytest.raises(LookupError, match="the cursor is gone"):
        await harvester.harvest(links, out=tmp_path / "out", **options(serve().url))
    assert len(rows(tmp_path / "out")) == 10
    assert manifest(tmp_path / "out")["stopped"]["reason"] == "input"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("iterable", SystemExit),
        ("iterable", KeyboardInterrupt),
        ("iterable", asyncio.CancelledError),
        ("asynchronous", asyncio.CancelledError),
    ],
)
async def test_whatever_the_links_raise_is_never_taken_for_their_end(
    tmp_path: Path, serve: Callable[..., Served], kind: str, error: type[BaseException]
) -> None:
    def broken() -> Iterator[str]:
        yield "bit.ly/a"
        raise error

    async def broken_later() -> AsyncIterator[str]:
        for link in broken():
            yield link

    links = broken() if kind == "iterable" else broken_later()
    with pytest.raises(error):
        await harvester.harvest(links, out=tmp_path / "out", **options(serve().url))
    assert manifest(tmp_path / "out")["stopped"]["reason"] == "input"


async def test_a_run_that_stops_before_its_first_call_writes_down_why(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    async def silent() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "bit.ly/a"

    out, given = tmp_path / "out", options(serve().url)
    assert (await harvester.harvest(["bit.ly/a"], out=out, **given))["complete"]
    found = await harvester.harvest(silent(), out=out, strict=True, max_time=0.1, **given)
    assert found == manifest(out)
    assert found["stopped"]["reason"] == "max_time"
    assert found["ended"] is not None
    assert found["dataset"]["rows"] == 1
    assert not (out / "_SUCCESS").exists()


async def test_the_manifest_is_found_though_the_working_directory_has_changed(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wandering() -> AsyncIterator[str]:
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        yield "bit.ly/a"

    monkeypatch.chdir(tmp_path)
    assert (await harvester.harvest(wandering(), out="out", **options(serve().url)))["complete"]


# --- a stream -------------------------------------------------------------------------------------------------------


async def test_a_stream_gives_every_row_once(serve: Callable[..., Served]) -> None:
    served = serve()
    names = [f"bit.ly/{i}" for i in range(700)]
    found = [row async for row in harvester.stream([*names, *names[:50]], **options(served.url))]
    assert sorted(row["bitlink"] for row in found) == sorted(names)
    assert all(row["metrics"] == expected_metrics(row) for row in found)


async def test_a_stream_of_no_links_is_empty(serve: Callable[..., Served]) -> None:
    assert [row async for row in harvester.stream([], **options(serve().url))] == []


async def test_a_stream_never_ends_early_as_if_it_were_complete(serve: Callable[..., Served]) -> None:
    found: list[dict[str, Any]] = []

    async def read() -> None:
        async for row in harvester.stream(endless(), **given):
            found.append(row)  # noqa: PERF401 - it ends with an error

    given = options(serve().url, max_calls=30)
    with pytest.raises(harvester.RunStopped) as stopped:
        await read()
    assert len(found) == 30
    assert stopped.value.reason == "max_calls"


async def test_a_call_without_a_row_is_passed_to_the_callback(serve: Callable[..., Served]) -> None:
    told: list[dict[str, Any]] = []
    links = ["bit.ly/a", "bit.ly/missing-1", "nonsense"]
    found = [row async for row in harvester.stream(links, on_failure=told.append, **options(serve().url))]
    assert len(found) == 1
    kinds = {line["kind"]: (line["bitlink"], line["text"], line["status"], line["file"], line["line"]) for line in told}
    assert kinds == {
        "refused": ("bit.ly/missing-1", None, 404, "<links>", 2),
        "invalid": (None, "nonsense", None, "<links>", 3),
    }


async def test_what_the_callback_raises_ends_the_stream(serve: Callable[..., Served]) -> None:
    def refuse(failure: dict[str, Any]) -> None:
        raise LookupError(failure["bitlink"])

    links = (f"bit.ly/missing-{i}" if i else "bit.ly/a" for i in range(10_000))
    with pytest.raises(LookupError, match="missing"):
        async for _ in harvester.stream(links, on_failure=refuse, **options(serve().url)):
            pass
    await nothing_left()


@pytest.mark.parametrize(
    ("error", "raises"), [(asyncio.CancelledError, asyncio.CancelledError), (None, harvester.UsageError)]
)
async def test_a_callback_that_cancels_or_is_asynchronous_ends_the_stream(
    serve: Callable[..., Served], error: type[BaseException] | None, raises: type[BaseException]
) -> None:
    async def later() -> None: ...

    def answer(_: dict[str, Any]) -> object:
        if error is not None:
            raise error
        return later()

    async def read() -> None:
        async for _ in harvester.stream(["bit.ly/missing", "bit.ly/a"], on_failure=answer, **options(serve().url)):
            pass

    with pytest.raises(raises):
        await read()
    await nothing_left()


async def test_a_stream_whose_wait_was_cancelled_does_not_look_complete_to_who_reads_on(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    async def one_at_a_time() -> AsyncIterator[str]:
        yield "bit.ly/a"
        await asyncio.Event().wait()

    found = harvester.stream(one_at_a_time(), **options(serve().url, work_dir=tmp_path))
    assert (await anext(found))["bitlink"] == "bit.ly/a"
    waiting = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await nothing_left(tmp_path)
    for _ in range(2):
        with pytest.raises(harvester.RunStopped, match=r"asyncio\.timeout") as stopped:
            await anext(found)
        assert stopped.value.reason == "cancelled"
    await found.aclose()


def test_a_stream_that_ended_with_its_loop_does_not_look_complete_in_another(serve: Callable[..., Served]) -> None:
    async def begin() -> Any:
        found = harvester.stream(endless(), **options(serve().url))
        await anext(found)
        return found

    found = asyncio.run(begin())
    with pytest.raises(harvester.RunStopped, match="event loop has ended"):
        asyncio.run(anext(found))


async def test_a_stream_that_is_over_stays_over(serve: Callable[..., Served]) -> None:
    whole, left = (harvester.stream(["bit.ly/a"], **options(serve().url)) for _ in range(2))
    assert len([row async for row in whole]) == 1
    await anext(left)
    await left.aclose()
    for found in (whole, left):
        with pytest.raises(StopAsyncIteration):
            await anext(found)


async def test_a_slow_reader_slows_the_calls(serve: Callable[..., Served]) -> None:
    served, taken = serve(), 0
    async with aclosing(harvester.stream(endless(), **options(served.url))) as found:
        async for _ in found:
            taken += 1
            for _ in range(20):
                await asyncio.sleep(0)
            assert served.sandbox.answered.total() <= taken + MOST_UNREAD
            if taken == 1000:
                break


async def nothing_left(folder: Path | None = None) -> None:
    """Wait until no task, thread, socket or file of a run is left; the test's own time limit is the bound."""
    while asyncio.all_tasks() != {asyncio.current_task()}:
        await asyncio.sleep(0)
    while any(thread.name.startswith("harvester") for thread in threading.enumerate()):
        await asyncio.sleep(0)
    if folder is not None:
        assert list(folder.iterdir()) == []


def descriptors() -> set[str]:
    """What this process has open, but for what the servers of the tests have."""
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return {path for path in found if "harvester" in path}


@pytest.mark.parametrize("links", [endless, endless_later])
@pytest.mark.parametrize("leaving", ["break and close", "break", "cancelled", "raising"])
async def test_leaving_a_stream_leaves_nothing_behind(
    tmp_path: Path, serve: Callable[..., Served], leaving: str, links: Callable[[], Any]
) -> None:
    served = serve(latency_ms=1)
    before = descriptors()

    async def consume() -> None:
        found = harvester.stream(links(), **options(served.url, work_dir=tmp_path))
        async for row in found:
            assert row["metrics"] is not None
            if leaving == "raising":
                raise LookupError
            if leaving == "cancelled":
                raise asyncio.CancelledError
            break
        if leaving == "break and close":
            await found.aclose()

    await asyncio.gather(asyncio.create_task(consume()), return_exceptions=True)
    gc.collect()
    await nothing_left(tmp_path)
    assert descriptors() == before
    assert served.sandbox.at_once == 0
    await harvester.metrics("bit.ly/a", **options(served.url))  # its seat is free again


async def test_a_blocked_iterable_does_not_hold_up_whoever_leaves(tmp_path: Path, serve: Callable[..., Served]) -> None:
    freed = threading.Event()

    def blocked() -> Iterator[str]:
        yield "bit.ly/a"
        freed.wait()
        yield "bit.ly/b"

    async with aclosing(harvester.stream(blocked(), **options(serve().url, work_dir=tmp_path))) as found:
        await anext(found)
    assert list(tmp_path.iterdir()) == []
    freed.set()
    await nothing_left()


async def test_a_blocked_asynchronous_iterable_is_closed(tmp_path: Path, serve: Callable[..., Served]) -> None:
    closed = False

    async def blocked() -> AsyncIterator[str]:
        nonlocal closed
        try:
            yield "bit.ly/a"
            await asyncio.Event().wait()
        finally:
            closed = True

    async with aclosing(harvester.stream(blocked(), **options(serve().url, work_dir=tmp_path))) as found:
        await anext(found)
    await nothing_left(tmp_path)
    assert closed


async def test_a_file_of_links_stays_its_owners(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "links.txt").write_text("# mine\nbit.ly/a\n\nbit.ly/b\n")
    with (tmp_path / "links.txt").open() as lines:
        given = await harvester.harvest(lines, out=tmp_path / "out", **options(serve().url))
        assert not lines.closed
    assert (given["list"]["comments"], given["list"]["blank"], given["list"]["links"]) == (1, 1, 2)


async def test_a_cancelled_harvest_can_be_resumed(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(latency_ms=5)
    names = [f"bit.ly/{i}" for i in range(100)]
    task = asyncio.create_task(harvester.harvest(names, out=tmp_path / "out", **options(served.url)))
    while served.sandbox.answered.total() < 30:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left()
    assert (await harvester.harvest(names, out=tmp_path / "out", **options(served.url)))["complete"]
    check_reconciled(tmp_path / "out", set(names))
    assert served.sandbox.requests.total() <= 105


async def test_a_long_wait_is_logged_once(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    given = options(serve().url, per_minute=0, per_hour=1, max_time="3s")
    with pytest.raises(harvester.RunStopped):
        [row async for row in harvester.stream(["bit.ly/a", "bit.ly/b"], **given)]
    assert len(caplog.records) == 1
    assert "waiting for the hour's limit of 1, until" in caplog.text


async def test_a_cancelled_stream_that_waits_for_rows_leaves_nothing_behind(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve(latency_ms=60_000)

    async def consume() -> None:
        async for _ in harvester.stream(endless(), **options(served.url, work_dir=tmp_path)):
            pass

    task = asyncio.create_task(consume())
    while served.sandbox.at_once < 5:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left(tmp_path)


def test_a_stream_that_is_forgotten_does_not_hold_up_the_end_of_its_loop(serve: Callable[..., Served]) -> None:
    script = '''
import asyncio, sys, threading, harvester
from tests.unit.test_api import endless
def handing_over():
    """Say whether a row is being handed over to a reader who does not take it."""
    disk = {thread.ident for thread in threading.enumerate() if thread.name.startswith("harvester-disk")}
    frames = [frame for ident, frame in sys._current_frames().items() if ident in disk]
    while frames:
        frame = frames.pop()
        if frame.f_code.co_filename.endswith("threads.py"):
            return True
        frames += [frame.f_back] if frame.f_back else []
    return False
async def main():
    global rows
    rows = harvester.stream(endless(), base_url=sys.argv[1], per_minute=0, per_hour=0, per_month=0)
    await anext(rows)
    held = 0
    while held < 500:
        held = held + 1 if handing_over() else 0
        await asyncio.sleep(0)
asyncio.run(main())
'''
    done = python(script, serve().url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the token ------------------------------------------------------------------------------------------------------


async def test_a_token_that_is_refused_is_asked_for_again(serve: Callable[..., Served]) -> None:
    tokens = ["revoked", TOKEN]
    row = await harvester.metrics("bit.ly/a", **options(serve().url, token=lambda: tokens.pop(0)))
    assert row["bitlink"] == "bit.ly/a"
    assert tokens == []


async def test_without_a_token_it_is_read_where_the_command_reads_it(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    given = options(serve().url, token=None)
    with pytest.raises(harvester.UsageError, match="BITLY_TOKEN"):
        await harvester.metrics("bit.ly/a", **given)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    await harvester.metrics("bit.ly/a", **given, token_file=tmp_path / "token")
    await harvester.metrics("bit.ly/a", **given, token_command="echo word")
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    await harvester.metrics("bit.ly/a", **given)


async def later() -> str:
    return TOKEN


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (5, "must be text, or a callable"),
        ("two words", "no spaces"),
        ("", "contains no token"),
        (lambda: None, "must return text"),
        (later, "a plain callable"),
        ({}.popitem, "raised KeyError"),
        (sys.exit, "raised SystemExit"),
    ],
)
async def test_text_that_is_not_a_token_is_refused(token: Any, says: str) -> None:
    with pytest.raises(harvester.UsageError, match=says) as refused:
        await harvester.metrics("bit.ly/a", token=token)
    assert "two words" not in str(refused.value)


async def test_a_token_is_given_once() -> None:
    with pytest.raises(harvester.UsageError, match="use one of them"):
        await harvester.metrics("bit.ly/a", token=TOKEN, token_file="token")


# --- progress -------------------------------------------------------------------------------------------------------


class Notebook:
    """Stands in for IPython with a kernel: what is displayed, and what takes its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        shell = SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=self.display))

    def display(self, text: Any, *, display_id: bool) -> Any:
        assert display_id
        self.shown.append(text.plain)
        return SimpleNamespace(update=lambda text: self.shown.append(text.plain))


async def test_a_notebook_shows_a_line_of_a_harvest_and_of_a_stream(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, url, links = Notebook(monkeypatch), serve().url, ["bit.ly/a", "bit.ly/b", "bit.ly/missing-c"]
    await harvester.harvest(links, out=tmp_path / "out", **options(url))
    assert "3 of 3 links ━" in notebook.shown[-1]
    assert " · 2 rows · 1 refused · 0 failed · " in notebook.shown[-1]
    notebook.shown.clear()
    assert len([row async for row in harvester.stream(links, **options(url))]) == 2
    assert " · 2 rows · 1 refused · 0 failed · " in notebook.shown[-1]


async def test_progress_false_leaves_the_line_out(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, url = Notebook(monkeypatch), serve().url
    await harvester.harvest(["bit.ly/a"], out=tmp_path / "out", progress=False, **options(url))
    assert [row async for row in harvester.stream(["bit.ly/a"], progress=False, **options(url))]
    assert notebook.shown == []


async def test_a_front_end_that_fails_does_not_end_a_harvest(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("the front end has gone")

    Notebook(monkeypatch)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=broken))
    found = await harvester.harvest(["bit.ly/a"], out=tmp_path / "out", **options(serve().url))
    assert found["complete"]


async def test_outside_a_notebook_progress_is_shown_only_when_it_is_asked_for(
    tmp_path: Path, serve: Callable[..., Served], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvester.reporting.reporter.FIRST_SECONDS", 0.0)
    url = serve().url
    for name, progress in (("default", None), ("off", False)):
        await harvester.harvest(["bit.ly/a"], out=tmp_path / name, progress=progress, **options(url))
        assert capfd.readouterr() == ("", "")
    await harvester.harvest(["bit.ly/a"], out=tmp_path / "on", progress=True, **options(url))
    said = capfd.readouterr()
    assert said.out == ""
    assert " UTC 0 rows, 0 refused, 0 failed" in said.err


# --- options --------------------------------------------------------------------------------------------------------


def test_the_keywords_are_the_options_of_run() -> None:
    beside = {"out", "quiet", "log_format", "on_end"}  # an argument of its own; nothing is said, and the end is known
    beside |= {"engine", "tasks", "shared_dir"}  # of harvester.spark
    assert set(get_type_hints(HarvestKeywords)) == set(names_in(RunOptions)) - beside


async def test_an_unknown_keyword_is_refused_with_the_nearest(tmp_path: Path) -> None:
    wrong: Any = {"facett": "countries"}
    not_for_streams: Any = {"part_rows": 5}
    with pytest.raises(harvester.UsageError, match="did you mean facet"):
        await harvester.harvest([], out=tmp_path, **wrong)
    with pytest.raises(harvester.UsageError, match="did you mean facet"):
        await harvester.metrics("bit.ly/a", **wrong)
    with pytest.raises(harvester.UsageError, match="did you mean facet"):
        harvester.stream([], **wrong)
    with pytest.raises(harvester.UsageError, match="unknown option part_rows"):
        harvester.stream([], **not_for_streams)


@pytest.mark.parametrize(
    ("name", "value"), [("size", "5"), ("size", True), ("strict", 1), ("facet", None), ("max_time", []), ("units", 1.0)]
)
async def test_a_value_of_another_kind_is_refused(name: str, value: Any) -> None:
    with pytest.raises(harvester.UsageError, match=f"{name}: must be .*, not "):
        harvester.stream([], **{name: value})


def test_values_may_be_what_python_has_for_them() -> None:
    found = run_options(
        {
            "unit_reference": datetime(2026, 11, 1, tzinfo=UTC),
            "timeout": timedelta(seconds=5),
            "max_time": 90,
            "work_dir": Path("work"),
            "max_failures": 5,
        },
        StreamKeywords,
        "-",
    )
    assert found.query.unit_reference == "2026-11-01T00:00:00+00:00"
    assert (found.limits.timeout, found.stopping.max_time, found.stopping.max_failures) == ("5.000000", "90", "5")
    assert found.output.work_dir == "work"


# --- its page --------------------------------------------------------------------------------------------------------


async def test_what_the_page_shows_runs(
    tmp_path: Path,
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    kwdefaults: Any = AccessOptions.__init__.__kwdefaults__
    monkeypatch.setitem(kwdefaults, "base_url", serve().url)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{i}\n" for i in range(20)))
    names: dict[str, Any] = {}
    for block in blocks:
        if pending := eval(compile(block, "python.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names):
            await pending
    assert names["manifest"]["complete"]
    assert names["table"].num_rows == 20
    assert names["busiest"].num_rows
    said = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in said} == {"bit.ly/3lU6hRt", "bit.ly/2Zb3xvX", "404"}


def test_the_page_names_all_that_the_package_promises() -> None:
    page = (ROOT / "docs/python.md").read_text()
    assert [name for name in harvester.__all__ if name not in page] == []


# --- the package ----------------------------------------------------------------------------------------------------


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def test_importing_it_is_light() -> None:
    heavy = {"aiohttp", "sqlite3", "cyclopts", "asyncio", "pyarrow", "rich"}
    done = python(f"import harvester, sys; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_every_public_name_exists() -> None:
    done = python(
        "import harvester.run.job, harvester\n"
        "from harvester import *\n"
        "print([name for name in harvester.__all__ if name not in globals() or name not in dir(harvester)])\n"
        "print(callable(harvester.harvest), hasattr(harvester, 'nothing'))"
    )
    assert done.stdout == "[]\nTrue False\n", done.stderr
    assert (ROOT / "harvester/py.typed").exists()


def test_nothing_is_printed_and_no_signal_is_handled(tmp_path: Path, serve: Callable[..., Served]) -> None:
    script = """
import asyncio, signal, sys, harvester
async def main():
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    run = harvester.harvest(["bit.ly/missing", "nonsense"], out=sys.argv[2], base_url=sys.argv[1])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run)
        while not task.done():
            assert [signal.getsignal(number) for number in signal.valid_signals()] == before
            await asyncio.sleep(0)
asyncio.run(main())
"""
    done = python(script, serve().url, str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_what_a_person_may_want_to_know_is_logged(
    tmp_path: Path, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "harvester")
    await harvester.harvest(["nonsense", "bit.ly/missing"], out=tmp_path / "out", **options(serve().url))
    said = {(record.levelname, record.name) for record in caplog.records}
    assert said == {("WARNING", "harvester"), ("INFO", "harvester")}
    assert "<links>:1: not a bitlink" in caplog.text
    assert "NOT_FOUND" in caplog.text
    assert TOKEN not in caplog.text
