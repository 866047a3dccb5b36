"""Whom does a bad answer concern: its link, or everybody? In the test's own process, against a scripted Bitly."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harvester.bitly.query import MAX_CONNECTIONS
from harvester.cli.exit_codes import exit_code
from harvester.client.client import ClientSettings
from harvester.client.held_verdicts import BURST, LAST_STREAK, STREAK
from harvester.events import RunOutcome
from harvester.reporting.summary import summary
from harvester.run.harvest import RETRY_ROOM
from harvester.shutdown import (
    BOUND_REACHED,
    MONTH_SPENT,
    OK,
    REFUSED,
    SOME_FAILED,
    STOPPED,
    TOO_MANY_FAILED,
    USAGE,
    FailureLimit,
    StopReason,
)
from tests.e2e.test_operations import wait_until
from tests.e2e.test_run_against_a_hostile_server import many
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.in_process import QUICK_GATE, harvest
from tests.support.output_checks import failures, manifest, rows
from tests.support.scripted_bitly import HTML, REPLIES, Reply, Scripted, Seen, error, fixed, scripted, text

IMPATIENT = replace(QUICK_GATE, limit_seconds=0.3)
STRANGE = ["408", "425", "520", "redirect", "403-html", "404-html", "html", "418", "empty-object", "407"]
"""What proxies, maintenance pages and firewalls say: no word of Bitly's on a link."""


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def from_request(bitly: Scripted, number: int, behaviour: str) -> None:
    """Let everybody meet this behaviour from a request on, counted from 0."""
    bitly.everyone = lambda: behaviour if len(bitly.requests) > number else None


def dataset(folder: Path) -> dict[str, int]:
    """The dataset's calls by state."""
    counts: dict[str, int] = manifest(folder / "out")["dataset"]
    return {name: counts[name] for name in ("calls", "rows", "refused", "failed", "pending")}


def one_at_a_time(bitly: Scripted) -> dict[str, Any]:
    """Change a job to one connection."""
    return {"client_settings": ClientSettings(bitly.url, 1, attempts=5, timeout_seconds=10.0, backoff_seconds=0.01)}


def check_stopped_by_an_outage(outcome: RunOutcome, text: str) -> None:
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.OUTAGE
    assert text in outcome.stop.message
    assert exit_code(outcome) == STOPPED


# --- an answer that is none, for everybody --------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", STRANGE)
async def test_a_strange_answer_for_everybody_from_the_first_call_on_is_an_outage(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    bitly.everyone = lambda: behaviour
    status = {"redirect": "302", "html": "200", "empty-object": "200"}.get(behaviour, behaviour[:3])
    for _ in range(4):  # more runs than it takes to give a call up
        before = len(bitly.requests)
        outcome = await harvest(bitly.url, quick_path, many("ok", 100), breaker_rules=IMPATIENT)
        said = f"HTTP {status}" if behaviour in {"redirect", "403-html", "404-html", "407", "418"} else f"{status} "
        check_stopped_by_an_outage(outcome, f"Lately: {said}")
        assert len(bitly.requests) - before < 60
        assert failures(quick_path / "out") == []
    bitly.everyone = lambda: None
    assert (await harvest(bitly.url, quick_path, many("ok", 100))).complete
    assert len(rows(quick_path / "out")) == 100


@pytest.mark.parametrize("behaviour", STRANGE)
async def test_a_strange_answer_for_everybody_in_the_middle_is_waited_out(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    bitly.everyone = lambda: behaviour if 60 <= len(bitly.requests) - 1 < 90 else None
    outcome = await harvest(bitly.url, quick_path, many("ok", 200))
    assert outcome.complete
    assert failures(quick_path / "out") == []
    assert len(rows(quick_path / "out")) == 200


async def test_calls_that_failed_before_are_not_written_off_by_a_server_that_answers_nobody(
    bitly: Scripted, quick_path: Path
) -> None:
    names = [f"418x1-then-ok--{number}" for number in range(60)]
    assert exit_code(await harvest(bitly.url, quick_path, [*many("ok", 60), *names])) == SOME_FAILED
    failed = dataset(quick_path)["failed"]
    assert failed > 0
    from_request(bitly, len(bitly.requests), "403-html")
    before = len(bitly.requests)
    outcome = await harvest(bitly.url, quick_path, names, breaker_rules=IMPATIENT)
    check_stopped_by_an_outage(outcome, "403")
    assert len(bitly.requests) - before < 60
    assert dataset(quick_path)["failed"] == failed
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, names)) == OK


@pytest.mark.parametrize("behaviour", ["418", "403-html", "redirect", "404-html"])
async def test_one_strange_answer_among_good_ones_is_its_links_failure_and_costs_one_attempt(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    outcome = await harvest(bitly.url, quick_path, [*many("ok", 40), behaviour, *many("ok--more", 40)])
    assert exit_code(outcome) == SOME_FAILED
    [line] = failures(quick_path / "out")
    assert (line["bitlink"], line["kind"], line["attempts"]) == (f"bit.ly/{behaviour}", "failed", 1)
    assert len(bitly.visits(behaviour)) == 1
    assert len(bitly.requests) <= 81 + 1


async def test_where_strange_answers_come_and_go_no_link_is_given_up(bitly: Scripted, quick_path: Path) -> None:
    """A firewall that blocks requests at random. The run before has shown that it does: links of it are answered."""
    blocked = [f"403-htmlx{times}-then-ok--{number}" for number in range(6) for times in (1, 2, 3)]
    names = [name for pair in zip(many("ok", 18), blocked, strict=True) for name in pair]
    assert exit_code(await harvest(bitly.url, quick_path, names)) == SOME_FAILED
    assert dataset(quick_path)["failed"] == 18
    assert len(bitly.visits(blocked[-1])) == 1
    assert exit_code(await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))) == OK
    assert len(bitly.visits(blocked[-1])) == 4


@pytest.mark.parametrize("behaviour", ["418", "html"])
@pytest.mark.parametrize("links", [1, 4])
async def test_a_few_strange_answers_where_nobody_was_answered_are_an_outage_and_charge_nobody(
    bitly: Scripted, quick_path: Path, behaviour: str, links: int
) -> None:
    bitly.everyone = lambda: behaviour
    for _ in range(4):  # more runs than it takes to give a call up
        outcome = await harvest(bitly.url, quick_path, many("ok", links), breaker_rules=IMPATIENT)
        check_stopped_by_an_outage(outcome, "Lately: ")
        assert dataset(quick_path) == {"calls": links, "rows": 0, "refused": 0, "failed": 0, "pending": links}
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", links))) == OK


async def test_a_few_strange_answers_are_the_links_failures_if_a_link_of_the_dataset_is_answered(
    bitly: Scripted, quick_path: Path
) -> None:
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 3))) == OK
    assert exit_code(await harvest(bitly.url, quick_path, many("418", 3))) == SOME_FAILED
    assert dataset(quick_path)["failed"] == 3
    assert len(bitly.requests) <= 3 + 2 * 3 + 1


async def test_many_links_with_strange_answers_have_failed_if_a_link_that_was_answered_is_answered_again(
    bitly: Scripted, quick_path: Path
) -> None:
    names = [*many("ok", 10), *many("html", 40), *many("418", 40), *many("ok--more", 10)]
    outcome = await harvest(bitly.url, quick_path, names)
    assert exit_code(outcome) == SOME_FAILED
    assert dataset(quick_path) == {"calls": 100, "rows": 20, "refused": 0, "failed": 80, "pending": 0}


# --- a mass of definite no's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["404", "410", "403-resource", "400-bitlink", "404-plain"])
async def test_definite_noes_for_everybody_behind_good_answers_write_nothing_off(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    from_request(bitly, 60, behaviour)
    outcome = await harvest(bitly.url, quick_path, many("ok", 200))
    check_stopped_by_an_outage(outcome, behaviour[:3])
    assert len(bitly.requests) <= 60 + STREAK + 2 * MAX_CONNECTIONS + 2
    assert {line["kind"] for line in failures(quick_path / "out")} <= {"failed"}
    assert (dataset(quick_path)["rows"], dataset(quick_path)["refused"]) == (60, 0)
    assert not (quick_path / "out" / "_SUCCESS").exists()
    bitly.everyone = lambda: None
    assert (await harvest(bitly.url, quick_path, many("ok", 200))).complete
    assert len(rows(quick_path / "out")) == 200
    assert len(bitly.visits("ok--0")) <= 3


async def test_a_row_of_links_that_are_gone_costs_one_question_for_twenty(bitly: Scripted, quick_path: Path) -> None:
    outcome = await harvest(bitly.url, quick_path, [*many("ok", 60), *many("404", 140)])
    assert exit_code(outcome) == OK
    assert dataset(quick_path) == {"calls": 200, "rows": 60, "refused": 140, "failed": 0, "pending": 0}
    assert 1 <= len(bitly.requests) - 200 <= 140 // STREAK
    assert {len(bitly.visits(name)) for name in many("404", 140)} == {1}


async def test_a_list_of_which_half_is_gone_costs_no_question(bitly: Scripted, quick_path: Path) -> None:
    names = [name for pair in zip(many("ok", 150), many("404", 150), strict=True) for name in pair]
    outcome = await harvest(bitly.url, quick_path, names)
    assert exit_code(outcome) == OK
    assert dataset(quick_path)["refused"] == 150
    assert len(bitly.requests) == 300


async def test_refusals_in_a_run_that_carries_on_are_checked_by_a_link_of_the_dataset(
    bitly: Scripted, quick_path: Path
) -> None:
    assert (await harvest(bitly.url, quick_path, many("ok", 10))).complete
    bitly.everyone = lambda: "404"
    outcome = await harvest(bitly.url, quick_path, many("ok", 100))
    check_stopped_by_an_outage(outcome, "404 NOT_FOUND")
    assert dataset(quick_path)["refused"] == 0


async def test_a_wrong_base_url_for_a_dataset_with_rows_is_named(bitly: Scripted, quick_path: Path) -> None:
    assert (await harvest(bitly.url, quick_path, many("ok", 10))).complete
    bitly.everyone = lambda: "404-plain"
    outcome = await harvest(bitly.url, quick_path, many("ok", 100))
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.NO_ROUTE
    assert exit_code(outcome) == USAGE
    assert failures(quick_path / "out") == []


async def test_a_known_good_link_that_is_gone_since_does_not_stop_the_run(bitly: Scripted, quick_path: Path) -> None:
    names = ["okx1-then-404", "ok", *many("404", 60)]
    outcome = await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))
    assert exit_code(outcome) == OK
    assert dataset(quick_path) == {"calls": 62, "rows": 2, "refused": 60, "failed": 0, "pending": 0}


async def test_a_plain_404_at_the_end_of_a_list_is_for_good_once_a_link_was_answered_since(
    bitly: Scripted, quick_path: Path
) -> None:
    outcome = await harvest(bitly.url, quick_path, ["ok", *many("404-plain", 3)], **one_at_a_time(bitly))
    assert exit_code(outcome) == OK
    assert dataset(quick_path)["refused"] == 3
    assert len(bitly.visits("ok")) == 2


async def test_a_plain_404_for_everybody_at_the_end_of_a_list_writes_nothing_off(
    bitly: Scripted, quick_path: Path
) -> None:
    from_request(bitly, 60, "404-plain")
    outcome = await harvest(bitly.url, quick_path, many("ok", 65))
    check_stopped_by_an_outage(outcome, "404")
    assert failures(quick_path / "out") == []


async def test_a_token_that_is_refused_behind_a_row_of_noes_stops_with_its_own_reason(
    bitly: Scripted, quick_path: Path
) -> None:
    names = [*many("ok", 30), *many("404", 60)]
    bitly.everyone = lambda: "401" if len(bitly.requests) == 30 + STREAK + 1 else None
    outcome = await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.TOKEN_REFUSED
    assert dataset(quick_path)["refused"] == 0


async def test_an_outage_behind_a_row_of_noes_has_them_asked_again(bitly: Scripted, quick_path: Path) -> None:
    """While a server goes down it says this and that."""
    said = {**dict.fromkeys(range(31, 31 + STREAK), "404"), **dict.fromkeys(range(31 + STREAK, 35 + STREAK), "503")}
    bitly.everyone = lambda: said.get(len(bitly.requests))
    outcome = await harvest(bitly.url, quick_path, many("ok", 80), **one_at_a_time(bitly))
    assert outcome.complete
    assert dataset(quick_path)["rows"] == 80


# --- no's where nobody was ever answered ----------------------------------------------------------------------------

DEFINITE = ["404", "410", "403-resource", "400-bitlink"]


@pytest.mark.parametrize("behaviour", DEFINITE)
@pytest.mark.parametrize("links", [1, 49])
async def test_a_list_to_which_the_server_only_says_no_is_no_success_and_is_asked_again(
    bitly: Scripted, quick_path: Path, behaviour: str, links: int
) -> None:
    bitly.everyone = lambda: behaviour
    outcome = await harvest(bitly.url, quick_path, many("ok", links))
    assert exit_code(outcome) == SOME_FAILED
    assert not (quick_path / "out" / "_SUCCESS").exists()
    assert dataset(quick_path) == {"calls": links, "rows": 0, "refused": 0, "failed": links, "pending": 0}
    assert {(line["kind"], line["status"]) for line in failures(quick_path / "out")} == {("failed", int(behaviour[:3]))}
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", links))) == OK
    assert len(rows(quick_path / "out")) == links
    assert len(bitly.requests) == 2 * links


async def test_a_few_links_that_are_gone_are_given_up_after_as_many_runs_as_failed_ones(
    bitly: Scripted, quick_path: Path
) -> None:
    for asked in (3, 6, 9, 9, 9):
        outcome = await harvest(bitly.url, quick_path, many("404", 3))
        assert exit_code(outcome) == SOME_FAILED
        assert len(bitly.requests) == asked
    # Once any link was answered they can be settled.
    outcome = await harvest(bitly.url, quick_path, ["ok", *many("404", 3)], retry_failed=True)
    assert exit_code(outcome) == OK
    assert dataset(quick_path) == {"calls": 4, "rows": 1, "refused": 3, "failed": 0, "pending": 0}


@pytest.mark.parametrize("behaviour", DEFINITE)
async def test_a_server_that_says_no_to_everybody_writes_nothing_off_however_often_it_is_asked(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    bitly.everyone = lambda: behaviour
    for _ in range(4):  # more runs than it takes to give a call up
        before = len(bitly.requests)
        outcome = await harvest(bitly.url, quick_path, many("ok", 80))
        assert outcome.stop is not None
        assert (exit_code(outcome), outcome.stop.reason) == (TOO_MANY_FAILED, StopReason.ALL_REFUSED)
        assert 50 <= len(bitly.requests) - before <= 50 + MAX_CONNECTIONS
        assert dataset(quick_path) == {"calls": 80, "rows": 0, "refused": 0, "failed": 0, "pending": 80}
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 80))) == OK
    assert len(rows(quick_path / "out")) == 80


async def test_a_server_that_says_no_in_several_ways_is_not_asked_for_the_whole_list(
    bitly: Scripted, quick_path: Path
) -> None:
    bitly.everyone = lambda: DEFINITE[len(bitly.requests) % 3]
    for _ in range(4):  # more runs than it takes to give a call up
        before = len(bitly.requests)
        outcome = await harvest(bitly.url, quick_path, many("ok", 80))
        assert outcome.stop is not None
        assert (exit_code(outcome), outcome.stop.reason) == (TOO_MANY_FAILED, StopReason.ALL_REFUSED)
        assert 50 <= len(bitly.requests) - before <= 50 + MAX_CONNECTIONS
        assert dataset(quick_path) == {"calls": 80, "rows": 0, "refused": 0, "failed": 0, "pending": 80}
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 80))) == OK


async def test_noes_before_the_first_answer_are_final_once_it_comes(bitly: Scripted, quick_path: Path) -> None:
    names = [*many("404", BURST - 1), *many("ok", 5)]
    outcome = await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))
    assert exit_code(outcome) == OK
    assert dataset(quick_path)["refused"] == BURST - 1
    assert len(bitly.requests) == len(names)


async def test_more_noes_than_can_wait_for_the_first_answer_are_asked_again_by_the_next_run(
    bitly: Scripted, quick_path: Path
) -> None:
    names, allowed = [*many("404", 130), "ok"], FailureLimit(share=1.0)
    outcome = await harvest(bitly.url, quick_path, names, failure_limit=allowed, **one_at_a_time(bitly))
    assert exit_code(outcome) == SOME_FAILED
    assert (dataset(quick_path)["refused"], dataset(quick_path)["failed"]) == (RETRY_ROOM, 130 - RETRY_ROOM)
    assert exit_code(await harvest(bitly.url, quick_path, names, failure_limit=allowed)) == OK
    assert dataset(quick_path)["refused"] == 130


async def test_too_many_noes_before_the_first_answer_are_reported_and_given_up_in_time(
    bitly: Scripted, quick_path: Path
) -> None:
    names, few = [*many("404", 4), "ok"], {"failure_limit": FailureLimit(count=3), **one_at_a_time(bitly)}
    for _ in range(3):
        outcome = await harvest(bitly.url, quick_path, names, **few)
        assert exit_code(outcome) == TOO_MANY_FAILED
        assert [line["kind"] for line in failures(quick_path / "out")] == ["failed"] * 4
    assert exit_code(await harvest(bitly.url, quick_path, names, **few)) == SOME_FAILED
    assert len(rows(quick_path / "out")) == 1


async def test_a_stop_before_the_first_answer_leaves_refused_links_open(bitly: Scripted, quick_path: Path) -> None:
    bitly.everyone = lambda: "404"
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 40), max_calls=30)) == BOUND_REACHED
    assert dataset(quick_path)["refused"] == 0
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 40))) == OK
    assert len(rows(quick_path / "out")) == 40


async def test_a_dataset_with_rows_remembers_known_good_links_for_a_list_that_names_none(
    bitly: Scripted, quick_path: Path
) -> None:
    assert (await harvest(bitly.url, quick_path, many("ok", 10))).complete
    bitly.everyone = lambda: "404"
    outcome = await harvest(bitly.url, quick_path, many("ok--more", 30))
    check_stopped_by_an_outage(outcome, "404 NOT_FOUND")
    assert dataset(quick_path)["refused"] == 0
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("404", 2))) == OK
    assert dataset(quick_path)["refused"] == 2


# --- no's that are fewer than a row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", DEFINITE)
@pytest.mark.parametrize("last", [LAST_STREAK, STREAK - 1])
async def test_noes_for_everybody_at_the_end_of_a_list_write_nothing_off(
    bitly: Scripted, quick_path: Path, behaviour: str, last: int
) -> None:
    from_request(bitly, 60, behaviour)
    outcome = await harvest(bitly.url, quick_path, many("ok", 60 + last), **one_at_a_time(bitly))
    check_stopped_by_an_outage(outcome, behaviour[:3])
    assert dataset(quick_path)["refused"] == 0
    assert not (quick_path / "out" / "_SUCCESS").exists()
    assert len(bitly.requests) <= 60 + last + 2
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 60 + last))) == OK
    assert len(rows(quick_path / "out")) == 60 + last


@pytest.mark.parametrize(
    ("last", "questions"), [(1, 0), (2, 0), (LAST_STREAK - 1, 0), (LAST_STREAK, 1), (STREAK - 1, 1)]
)
async def test_links_that_are_gone_at_the_end_of_a_list_cost_one_question_if_they_are_a_few(
    bitly: Scripted, quick_path: Path, last: int, questions: int
) -> None:
    names = [*many("ok", 30), *many("404", last)]
    assert exit_code(await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))) == OK
    assert dataset(quick_path)["refused"] == last
    assert len(bitly.requests) == len(names) + questions
    assert exit_code(await harvest(bitly.url, quick_path, names)) == OK  # and none in a run without calls
    assert len(bitly.requests) == len(names) + questions


@pytest.mark.parametrize("behaviour", DEFINITE)
@pytest.mark.parametrize("noes", [BURST, STREAK - 1])
@pytest.mark.parametrize("first", [0, 40])
async def test_a_burst_of_noes_that_answers_follow_writes_nothing_off(
    bitly: Scripted, quick_path: Path, behaviour: str, noes: int, first: int
) -> None:
    bitly.everyone = lambda: behaviour if first < len(bitly.requests) <= first + noes else None
    outcome = await harvest(bitly.url, quick_path, many("ok", 100), **one_at_a_time(bitly))
    assert exit_code(outcome) == OK
    assert dataset(quick_path) == {"calls": 100, "rows": 100, "refused": 0, "failed": 0, "pending": 0}
    assert len(bitly.requests) == 100 + noes


async def test_a_burst_of_links_that_are_gone_costs_one_attempt_and_the_next_none_before_twenty(
    bitly: Scripted, quick_path: Path
) -> None:
    names = []
    for number in range(10):
        names += [*many(f"ok--{number}", 3), *many(f"404--{number}", BURST)]
    outcome = await harvest(bitly.url, quick_path, [*names, "ok--end"], **one_at_a_time(bitly))
    assert exit_code(outcome) == OK
    assert dataset(quick_path)["refused"] == 10 * BURST
    assert len(bitly.requests) - len(names) - 1 == 10 * BURST // STREAK


# --- a verdict for every call ---------------------------------------------------------------------------------------

FOR_EVERY_CALL = {
    "401": (REFUSED, StopReason.TOKEN_REFUSED),
    "403-bare": (REFUSED, StopReason.TOKEN_REFUSED),
    "403-token": (REFUSED, StopReason.TOKEN_REFUSED),
    "400-token": (REFUSED, StopReason.TOKEN_REFUSED),
    "402": (REFUSED, StopReason.PLAN_REFUSED),
    "400-unit": (USAGE, StopReason.PARAMETER_REFUSED),
    "429-month": (MONTH_SPENT, StopReason.MONTH_SPENT),
    "429-monthly": (MONTH_SPENT, StopReason.MONTH_SPENT),
}


@pytest.mark.parametrize("behaviour", FOR_EVERY_CALL)
async def test_a_verdict_for_every_call_that_one_link_gets_is_its_failure(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    names = [*many("ok", 15), behaviour, *many("ok--more", 14)]
    outcome = await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))
    assert exit_code(outcome) == SOME_FAILED
    assert outcome.stop is None
    [line] = failures(quick_path / "out")
    assert (line["bitlink"], line["kind"], line["status"]) == (f"bit.ly/{behaviour}", "failed", int(behaviour[:3]))
    assert len(rows(quick_path / "out")) == 29
    assert len(bitly.requests) == 31
    # The next run asks that link alone, and a link of the dataset.
    assert exit_code(await harvest(bitly.url, quick_path, names)) == SOME_FAILED
    assert len(bitly.requests) == 33


@pytest.mark.parametrize("behaviour", FOR_EVERY_CALL)
async def test_a_verdict_for_every_call_that_a_known_good_link_gets_too_stops(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    from_request(bitly, 15, behaviour)
    outcome = await harvest(bitly.url, quick_path, many("ok", 60))
    assert outcome.stop is not None
    assert (exit_code(outcome), outcome.stop.reason) == FOR_EVERY_CALL[behaviour]
    assert len(bitly.requests) <= 15 + MAX_CONNECTIONS + 1
    assert failures(quick_path / "out") == []
    assert len(rows(quick_path / "out")) == 15


@pytest.mark.parametrize("behaviour", FOR_EVERY_CALL)
async def test_a_verdict_for_every_call_where_nobody_was_answered_stops_at_once(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    bitly.everyone = lambda: behaviour
    outcome = await harvest(bitly.url, quick_path, many("ok", 60))
    assert outcome.stop is not None
    assert (exit_code(outcome), outcome.stop.reason) == FOR_EVERY_CALL[behaviour]
    assert len(bitly.requests) <= MAX_CONNECTIONS + 1  # a second link has to get it, too
    assert failures(quick_path / "out") == []


@pytest.mark.parametrize("connections", [1, MAX_CONNECTIONS])
@pytest.mark.parametrize("behaviour", FOR_EVERY_CALL)
async def test_a_verdict_for_every_call_that_the_first_link_gets_is_its_failure(
    bitly: Scripted, quick_path: Path, behaviour: str, connections: int
) -> None:
    names, changes = [behaviour, *many("ok", 20)], one_at_a_time(bitly) if connections == 1 else {}
    outcome = await harvest(bitly.url, quick_path, names, **changes)
    assert outcome.stop is None
    assert exit_code(outcome) == SOME_FAILED
    [line] = failures(quick_path / "out")
    assert (line["bitlink"], line["kind"], line["status"]) == (f"bit.ly/{behaviour}", "failed", int(behaviour[:3]))
    assert len(rows(quick_path / "out")) == 20
    assert len(bitly.requests) <= 22


@pytest.mark.parametrize("behaviour", FOR_EVERY_CALL)
async def test_a_verdict_for_every_call_costs_one_more_call_where_nobody_was_answered(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    bitly.everyone = lambda: behaviour
    outcome = await harvest(bitly.url, quick_path, many("ok", 60), **one_at_a_time(bitly))
    assert outcome.stop is not None
    assert (exit_code(outcome), outcome.stop.reason) == FOR_EVERY_CALL[behaviour]
    assert len(bitly.requests) == 2
    assert failures(quick_path / "out") == []


@pytest.mark.parametrize("behaviour", ["401", "429-month"])
async def test_two_links_with_a_verdict_for_every_call_stop_nothing_if_an_answer_is_on_its_way(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    names = [f"{behaviour}--1", f"{behaviour}--2", "ok-soon", *many("ok", 10)]
    outcome = await harvest(bitly.url, quick_path, names)
    assert exit_code(outcome) == SOME_FAILED
    assert len(failures(quick_path / "out")) == 2
    assert len(rows(quick_path / "out")) == 11


@pytest.mark.parametrize("behaviour", ["401", "402", "429-month"])
async def test_a_list_of_one_link_with_a_verdict_for_every_call_stops_with_it(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    outcome = await harvest(bitly.url, quick_path, [behaviour])
    assert outcome.stop is not None
    assert (exit_code(outcome), outcome.stop.reason) == FOR_EVERY_CALL[behaviour]
    assert len(bitly.requests) == 1
    assert dataset(quick_path)["failed"] == 0


async def test_many_links_that_each_get_a_verdict_for_every_call_cost_one_question_for_twenty(
    bitly: Scripted, quick_path: Path
) -> None:
    outcome = await harvest(bitly.url, quick_path, [*many("ok", 10), *many("403-bare", 90), *many("ok--more", 10)])
    assert exit_code(outcome) == SOME_FAILED
    assert dataset(quick_path) == {"calls": 110, "rows": 20, "refused": 0, "failed": 90, "pending": 0}
    assert len(bitly.requests) - 110 <= 2 + 90 // STREAK


async def test_a_month_that_is_spent_stays_spent_for_the_next_run(bitly: Scripted, quick_path: Path) -> None:
    from_request(bitly, 15, "429-month")
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 60))) == MONTH_SPENT
    before = len(bitly.requests)
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 60))) == MONTH_SPENT
    assert len(bitly.requests) == before


# --- the account's own route, where nobody was answered -------------------------------------------------------------

LIMITS = '{"platform_limits":[{"endpoint":"/bitlinks/{bitlink}/referrers","methods":[]}]}'


def helper_says(bitly: Scripted, monkeypatch: pytest.MonkeyPatch, reply: Callable[[Seen], Reply]) -> None:
    """Let the account's own route, which tells its limits, answer this."""
    monkeypatch.setitem(REPLIES, "the account's", reply)
    bitly.helper = "the account's"


OF_THE_ACCOUNT = ["401", "403-bare", "403-token", "400-token", "429-month"]


@pytest.mark.parametrize("behaviour", OF_THE_ACCOUNT)
@pytest.mark.parametrize("first", [2, 7])
async def test_links_at_the_head_of_a_list_that_are_refused_like_a_token_stop_nothing_if_the_token_is_good(
    bitly: Scripted, quick_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, first: int
) -> None:
    helper_says(bitly, monkeypatch, fixed(200, LIMITS))
    names = [*many(behaviour, first), *many("ok", 20)]
    outcome = await harvest(bitly.url, quick_path, names, **one_at_a_time(bitly))
    assert (exit_code(outcome), outcome.stop) == (SOME_FAILED, None)
    assert dataset(quick_path) == {"calls": first + 20, "rows": 20, "refused": 0, "failed": first, "pending": 0}
    assert len(bitly.helped) == 1
    assert len(bitly.requests) <= len(names) + 1


async def test_two_different_refusals_of_their_own_stop_nothing(
    bitly: Scripted, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper_says(bitly, monkeypatch, fixed(200, LIMITS))
    names = ["401", "403-bare", *many("ok", 20)]
    outcome = await harvest(bitly.url, quick_path, names)
    assert exit_code(outcome) == SOME_FAILED
    assert dataset(quick_path)["rows"] == 20


@pytest.mark.parametrize(
    "reply",
    [error(401, "UNAUTHORIZED"), error(503, "DOWN"), text(200, HTML), fixed(200, "{}")],
    ids=["refused", "down", "a page", "empty"],
)
async def test_a_token_is_refused_if_the_accounts_own_route_is_not_answered_either(
    bitly: Scripted, quick_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Callable[[Seen], Reply]
) -> None:
    helper_says(bitly, monkeypatch, reply)
    bitly.everyone = lambda: "401"
    outcome = await harvest(bitly.url, quick_path, many("ok", 60))
    assert outcome.stop is not None
    assert (exit_code(outcome), outcome.stop.reason) == (REFUSED, StopReason.TOKEN_REFUSED)
    assert (len(bitly.helped), failures(quick_path / "out")) == (1, [])
    assert len(bitly.requests) <= MAX_CONNECTIONS + 1


async def test_a_list_that_is_refused_throughout_though_the_token_is_good_is_not_asked_to_its_end(
    bitly: Scripted, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper_says(bitly, monkeypatch, fixed(200, LIMITS))
    bitly.everyone = lambda: "401"
    outcome = await harvest(bitly.url, quick_path, many("ok", 200))
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.ALL_REFUSED
    assert len(bitly.requests) <= 50 + 2 * MAX_CONNECTIONS
    assert len(bitly.helped) <= 1 + 50 // STREAK


async def test_a_list_of_one_link_that_is_refused_like_a_token_fails_if_the_token_is_good(
    bitly: Scripted, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper_says(bitly, monkeypatch, fixed(200, LIMITS))
    assert exit_code(await harvest(bitly.url, quick_path, ["401"])) == SOME_FAILED
    assert (len(bitly.requests), len(bitly.helped)) == (1, 1)
    outcome = await harvest(bitly.url, quick_path, ["402"])  # of the plan that route says nothing
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.PLAN_REFUSED


# --- answers that were not read -------------------------------------------------------------------------------------


async def test_answers_as_other_programs_write_them_are_rows(bitly: Scripted, quick_path: Path) -> None:
    outcome = await harvest(bitly.url, quick_path, ["null-metrics", "bom", "surrogate", "not-utf8", "ok"])
    assert exit_code(outcome) == OK
    found = {row["bitlink"]: row["metrics"] for row in rows(quick_path / "out")}
    assert found["bit.ly/null-metrics"] == []
    assert found["bit.ly/bom"][0]["value"] == "https://bom.example/"
    assert found["bit.ly/surrogate"] == found["bit.ly/not-utf8"] == [{"value": "\ufffd", "clicks": 1}]


async def test_another_facets_answer_is_no_row(bitly: Scripted, quick_path: Path) -> None:
    outcome = await harvest(bitly.url, quick_path, [*many("ok", 10), "other-facet", *many("ok--more", 10)])
    assert exit_code(outcome) == SOME_FAILED
    assert [line["message"] for line in failures(quick_path / "out")] == ["the answer names another facet"]


async def test_refusals_before_the_end_of_a_run_are_doubted_by_the_next_one(bitly: Scripted, quick_path: Path) -> None:
    """A kill, or a limit, between a refusal and its confirmation: each refusal is in the journal at once."""
    from_request(bitly, 60, "404")
    await harvest(bitly.url, quick_path, many("ok", 200), max_calls=70)
    assert (dataset(quick_path)["rows"], dataset(quick_path)["refused"]) == (60, 10)
    outcome = await harvest(bitly.url, quick_path, many("ok", 200))
    check_stopped_by_an_outage(outcome, "404")
    assert len(bitly.requests) <= 60 + STREAK + 2 * MAX_CONNECTIONS + 2
    assert dataset(quick_path)["refused"] == 0
    bitly.everyone = lambda: None
    assert (await harvest(bitly.url, quick_path, many("ok", 200))).complete
    assert len(rows(quick_path / "out")) == 200


async def test_many_refusals_of_a_stopped_run_are_doubted_though_the_server_answers_again(
    bitly: Scripted, quick_path: Path
) -> None:
    """One of them is asked again, and as it is answered all of them are open."""
    from_request(bitly, 20, "404")
    await harvest(bitly.url, quick_path, many("ok", 60), max_calls=39)
    assert dataset(quick_path)["refused"] == 19
    bitly.everyone = lambda: None
    assert exit_code(await harvest(bitly.url, quick_path, many("ok", 60))) == SOME_FAILED
    assert not (quick_path / "out" / "_SUCCESS").exists()
    assert (dataset(quick_path)["rows"], dataset(quick_path)["refused"]) == (41, 0)
    assert (await harvest(bitly.url, quick_path, many("ok", 60))).complete
    assert len(rows(quick_path / "out")) == 60


@pytest.mark.parametrize("gone", [False, True])
def test_refusals_that_nothing_had_confirmed_before_a_kill_are_doubted_though_the_server_answers_again(
    bitly: Scripted, tmp_path: Path, gone: bool
) -> None:
    """It costs one call; if that is refused again, they are believed."""
    noes = range(21, 21 + BURST + 4)
    bitly.everyone = lambda: (
        None if len(bitly.requests) < noes.start else "404" if len(bitly.requests) in noes else "silent"
    )
    links, out = tmp_path / "links.txt", tmp_path / "out"
    names = [*many("ok", 20), *many("404" if gone else "ok--later", len(noes)), *many("ok--last", 10)]
    links.write_text("".join(f"bit.ly/{name}\n" for name in names))
    command = ("run", str(links), "--out", str(out), "--base-url", bitly.url, *NO_LIMITS, "--connections", "1")
    with start(*command) as run:
        wait_until(lambda: len(bitly.requests) == noes.stop, run)
        run.kill()
        run.communicate(timeout=30)
    bitly.everyone = lambda: None
    assert harvester(*command).returncode == (0 if gone else 3)
    assert dataset(tmp_path)["refused"] == (len(noes) if gone else 0)
    assert harvester(*command).returncode == 0
    assert len(rows(out)) == 30 + (0 if gone else len(noes))
    assert len(bitly.requests) == len(names) + 2 + (0 if gone else len(noes))


async def test_refusals_that_are_asked_again_on_request_are_taken_back_once(bitly: Scripted, quick_path: Path) -> None:
    names = [f"{'404' if number % 2 else 'ok'}--{number}" for number in range(20)]
    await harvest(bitly.url, quick_path, names)
    assert dataset(quick_path)["refused"] == 10
    bitly.everyone = lambda: "404"
    await harvest(bitly.url, quick_path, names, retry_refused=True)
    counts = dataset(quick_path)
    assert min(counts.values()) == 0
    assert counts["rows"] + counts["refused"] + counts["failed"] + counts["pending"] == 20


async def test_noes_among_errors_at_the_end_of_a_list_write_nothing_off(bitly: Scripted, quick_path: Path) -> None:
    """Calls whose retries end one after another are never held together."""
    bitly.everyone = lambda: None if len(bitly.requests) <= 30 else "404" if len(bitly.requests) % 2 else "500-for-ever"
    await harvest(bitly.url, quick_path, many("ok", 60), breaker_rules=IMPATIENT)
    assert dataset(quick_path)["rows"] == 30
    assert dataset(quick_path)["refused"] < LAST_STREAK


@pytest.mark.parametrize("noes", [BURST, BURST + 2, BURST + MAX_CONNECTIONS, 50])
async def test_the_answers_in_flight_save_nothing_of_a_burst_from_being_asked_again(
    bitly: Scripted, quick_path: Path, noes: int
) -> None:
    bitly.everyone = lambda: "404" if 30 < len(bitly.requests) <= 30 + noes else None
    await harvest(bitly.url, quick_path, many("ok", 150))
    assert dataset(quick_path)["refused"] == 0


async def test_refusals_that_a_row_follows_are_final_and_cost_the_next_run_nothing(
    bitly: Scripted, quick_path: Path
) -> None:
    names = [*many("ok", 10), *many("404", LAST_STREAK - 1)]
    assert exit_code(await harvest(bitly.url, quick_path, names)) == OK
    assert exit_code(await harvest(bitly.url, quick_path, [*names, *many("ok--more", 5)])) == OK
    assert len(bitly.requests) == 10 + LAST_STREAK - 1 + 5


async def test_refusals_that_were_taken_back_do_not_count_as_tries(bitly: Scripted, quick_path: Path) -> None:
    assert (await harvest(bitly.url, quick_path, many("ok", 10))).complete
    bitly.everyone = lambda: "404"
    for _ in range(4):
        check_stopped_by_an_outage(await harvest(bitly.url, quick_path, many("ok", 40)), "404")
    bitly.everyone = lambda: None
    assert (await harvest(bitly.url, quick_path, many("ok", 40))).complete


async def test_a_refusal_is_in_the_journal_before_it_is_confirmed(bitly: Scripted, quick_path: Path) -> None:
    seen: list[int] = []

    def everyone() -> str | None:
        if len(bitly.requests) <= 60:
            return None
        journals = (quick_path / "out").glob("_harvester/journal*")
        seen.append(sum(path.read_bytes().count(b'"refused"') for path in journals))
        return "404"

    bitly.everyone = everyone
    await harvest(bitly.url, quick_path, many("ok", 200))
    assert max(seen) >= STREAK - MAX_CONNECTIONS


# --- failed too often -------------------------------------------------------------------------------------------------


async def test_what_has_failed_too_often_is_said_by_the_run_in_which_it_does(bitly: Scripted, quick_path: Path) -> None:
    names, said = [*many("ok", 5), "418"], []
    for again in (False, False, False, True, False):
        outcome = await harvest(bitly.url, quick_path, names, retry_failed=again)
        assert exit_code(outcome) == SOME_FAILED
        said.append((manifest(quick_path / "out")["given_up"], "the same command" in summary(outcome, "out", 1.0)))
    assert said == [(0, True), (0, True), (1, False), (1, False), (1, False)]
    assert len(bitly.visits("418")) == 4


@pytest.mark.parametrize("behaviour", ["418", "404"])
async def test_calls_that_are_made_again_are_counted_once_until_they_have_a_verdict(
    bitly: Scripted, quick_path: Path, behaviour: str
) -> None:
    names = [*many("ok", 5), *many(behaviour, 4)]
    await harvest(bitly.url, quick_path, names)
    once = dataset(quick_path)
    assert (once["calls"], once["refused"] + once["failed"]) == (9, 4)
    again = {"retry_failed": True, "retry_refused": True}
    outcome = await harvest(bitly.url, quick_path, [*names, *many("ok--more", 3)], max_calls=1, **again)
    assert exit_code(outcome) == BOUND_REACHED
    assert dataset(quick_path) == {**once, "calls": 12, "pending": 3}
    assert exit_code(await harvest(bitly.url, quick_path, [*names, *many("ok--more", 3)], **again)) in (OK, SOME_FAILED)
    assert dataset(quick_path) == {**once, "calls": 12, "rows": 8}
