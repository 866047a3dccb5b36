"""A verdict's NDJSON line: its keys and types, its record_id, and that it stays one line."""

import hashlib
import json
from datetime import date
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Period, Query, query_for, query_for_period
from harvester.bitly.verdicts import Answer
from harvester.rows.call import IDLE
from harvester.rows.row import SCHEMA_VERSION, RowBuilder
from harvester.rows.schema import shortfall_of

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
RUN_ID = "20261123T060000Z-1a2b3c4d"
FETCHED_AT = "2026-11-23T07:08:09Z"
MAKER = RowBuilder(QUERY, RUN_ID)

# All that Bitly can send: JSON in UTF-8 holds no surrogates.
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.text('a\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n\t\x00\x7f"\\\ufeff🦡', max_size=10),
)
METRICS = st.lists(
    st.fixed_dictionaries({"value": VALUES, "clicks": st.integers(0, 2**63 - 1)}),
    max_size=5,
)


def line_of(answer: Answer, bitlink: str = "bit.ly/x", maker: RowBuilder = MAKER) -> bytes:
    return maker.row(bitlink, maker.key(bitlink), answer, FETCHED_AT)


def row_of(answer: Answer, bitlink: str = "bit.ly/x", maker: RowBuilder = MAKER) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line_of(answer, bitlink, maker))
    return result


def test_a_row_has_exactly_these_keys_and_values() -> None:
    metrics = [{"value": "direct", "clicks": 2}, {"value": "https://t.co/", "clicks": 1}]
    assert row_of(Answer(metrics, 3, 30, "2026-11-23T06:00:00Z")) == {
        "record_id": hashlib.sha256(
            b"bit.ly/x\x1freferrers\x1fday\x1f-1\x1f2026-11-23T06:00:00Z",
        ).hexdigest()[:32],
        "run_id": RUN_ID,
        "bitlink": "bit.ly/x",
        "facet": "referrers",
        "unit": "day",
        "units": -1,
        "unit_reference": "2026-11-23T06:00:00Z",
        "size": 50,
        "fetched_at": FETCHED_AT,
        "period_start": None,
        "period_end": None,
        "units_returned": 30,
        "unit_reference_returned": "2026-11-23T06:00:00Z",
        "clicks_listed": 3,
        "truncated": False,
        "source": None,
        "carried": None,
        "metrics": metrics,
        "schema_version": 2,
    }


@given(METRICS, st.one_of(st.none(), st.integers(-1, 10_000)), st.one_of(st.none(), VALUES))
def test_a_rows_types_never_change(metrics: list[dict[str, Any]], units: int | None, reference: str | None) -> None:
    row = row_of(Answer(metrics, sum(metric["clicks"] for metric in metrics) % 2**63, units, reference))
    types: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("record_id", "run_id", "bitlink", "facet", "unit", "unit_reference", "fetched_at"), (str,)),
        **dict.fromkeys(("units", "size", "clicks_listed", "schema_version"), (int,)),
        **dict.fromkeys(("period_start", "period_end"), (str, type(None))),
        "units_returned": (int, type(None)),
        "unit_reference_returned": (str, type(None)),
        **dict.fromkeys(("period_start", "period_end"), (type(None),)),
        "truncated": (bool,),
        **dict.fromkeys(("source", "carried"), (type(None),)),
        "metrics": (list,),
    }
    assert row.keys() == types.keys()
    assert {name: type(value) for name, value in row.items() if type(value) not in types[name]} == {}
    assert row["schema_version"] == SCHEMA_VERSION == 2
    for metric in row["metrics"]:
        assert {name: type(value) for name, value in metric.items()} == {"value": str, "clicks": int}


def test_what_the_list_says_of_a_link_stands_in_its_row_before_its_metrics() -> None:
    carried = {"campaign": "autumn", "channel": None}
    line = MAKER.row("bit.ly/x", MAKER.key("bit.ly/x"), Answer([], 0, None, None), FETCHED_AT, carried)
    assert b',"carried":{"campaign":"autumn","channel":null},"metrics":[]' in line
    assert json.loads(line) == {**row_of(Answer([], 0, None, None)), "carried": carried}


@pytest.mark.parametrize("facet", FACETS)
def test_an_idle_row_differs_from_that_of_a_link_without_clicks_by_its_source(facet: str) -> None:
    maker = RowBuilder(query_for(facet, "day", 1, "2026-11-22T00:00:00Z", 50), RUN_ID)
    line = maker.idle_row("bit.ly/x", maker.key("bit.ly/x"), FETCHED_AT, {"campaign": "autumn"})
    answer = Answer([], 0, None, None, dict.fromkeys((field.name for field in FACETS[facet].totals), 0))
    asked = json.loads(maker.row("bit.ly/x", maker.key("bit.ly/x"), answer, FETCHED_AT, {"campaign": "autumn"}))
    assert json.loads(line) == {**asked, "source": "group_export"}
    assert shortfall_of(json.loads(line)) == IDLE


def test_an_idle_row_of_a_series_is_not_clipped() -> None:
    maker = RowBuilder(query_for_period("clicks", Period("day", date(2026, 11, 22)), 50), RUN_ID)
    row = json.loads(maker.idle_row("bit.ly/x", maker.key("bit.ly/x"), FETCHED_AT))
    assert shortfall_of(row) == IDLE
    assert shortfall_of({**row, "source": None}).clipped


def test_a_link_without_referrers_has_a_row() -> None:
    row = row_of(Answer([], 0, None, None))
    assert (row["metrics"], row["clicks_listed"], row["truncated"]) == ([], 0, False)
    assert (row["units_returned"], row["unit_reference_returned"]) == (None, None)


@pytest.mark.parametrize(("listed", "truncated"), [(0, False), (2, False), (3, True)])
def test_as_many_metrics_as_were_asked_for_means_truncated(listed: int, truncated: bool) -> None:
    maker = RowBuilder(Query("countries", "day", 1, "2026-11-23T06:00:00Z", 3), RUN_ID)
    metrics: list[dict[str, Any]] = [{"value": str(n), "clicks": n} for n in range(listed)]
    assert row_of(Answer(metrics, 0, None, None), maker=maker)["truncated"] is truncated


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@given(NAMES, st.sampled_from(["referrers", "countries"]), st.sampled_from(["day", "month"]), st.integers(-1, 400))
def test_the_record_id_is_the_first_half_of_a_sha_256_over_the_call(
    back_half: str, facet: str, unit: str, units: int
) -> None:
    bitlink = f"bit.ly/{back_half}"
    maker = RowBuilder(Query(facet, unit, units, "2026-01-01T00:00:00Z", 50), RUN_ID)
    joined = "\x1f".join([bitlink, facet, unit, str(units), "2026-01-01T00:00:00Z"])
    expected = hashlib.sha256(joined.encode()).hexdigest()[:32]
    assert maker.key(bitlink).hex() == expected
    assert row_of(Answer([], 0, None, None), bitlink, maker)["record_id"] == expected


def test_the_record_id_knows_neither_size_nor_run() -> None:
    other = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 7), "another-run")
    assert other.key("bit.ly/x") == MAKER.key("bit.ly/x")


def test_each_part_of_a_call_changes_its_record_id() -> None:
    queries = [
        QUERY,
        Query("countries", "day", -1, "2026-11-23T06:00:00Z", 50),
        Query("referrers", "week", -1, "2026-11-23T06:00:00Z", 50),
        Query("referrers", "day", 1, "2026-11-23T06:00:00Z", 50),
        Query("referrers", "day", -1, "2026-11-24T06:00:00Z", 50),
    ]
    keys = {RowBuilder(query, RUN_ID).key(bitlink) for query in queries for bitlink in ("bit.ly/x", "bit.ly/X")}
    assert len(keys) == 2 * len(queries)


@given(METRICS, VALUES)
@example([{"value": "a\u2028b\u2029c\x85d", "clicks": 1}], "\u2028")
@example([{"value": "\\u2028", "clicks": 1}], "\\\u2028")
def test_a_row_round_trips_and_is_one_line_to_every_reader(metrics: list[dict[str, Any]], reference: str) -> None:
    line = line_of(Answer(metrics, 0, 1, reference))
    for read in (json.loads, orjson.loads):
        row = read(line)
        assert row["metrics"] == metrics
        assert row["unit_reference_returned"] == reference
    assert len(line.decode().splitlines()) == 1
    assert len(line.splitlines()) == 1


def test_a_failure_has_exactly_these_keys() -> None:
    line = MAKER.failure(
        "refused", file="links.txt", line=7, bitlink="bit.ly/x", status=404, message="NOT_FOUND", attempts=1
    )
    assert json.loads(line) == {
        "bitlink": "bit.ly/x",
        "text": None,
        "facet": "referrers",
        "kind": "refused",
        "status": 404,
        "message": "NOT_FOUND",
        "attempts": 1,
        "file": "links.txt",
        "line": 7,
        "body": None,
    }


@given(VALUES, VALUES, VALUES)
def test_a_failure_of_any_text_round_trips_and_is_one_line(text: str, message: str, body: str) -> None:
    line = MAKER.failure("invalid", file="a\u2028b", line=1, text=text, message=message, body=body)
    record = json.loads(line)
    assert (record["text"], record["message"], record["body"], record["file"]) == (text, message, body, "a\u2028b")
    assert len(line.decode().splitlines()) == 1
