"""A group's export: what is posted, which time covers a query's window, and what an answer states of each link."""

import base64
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.bitlinks import Bitlink, parse
from harvester.bitly.exports import (
    MOST_LINKS,
    Export,
    ExportRequests,
    Span,
    export_name,
    lacks_in_export,
    read_export,
    span_of,
)
from harvester.bitly.facets import FACETS, NotTheFacet
from harvester.bitly.query import UNITS, Period, query_for, query_for_period
from harvester.bitly.verdicts import Document, PlanRefused, Refused, Transient, Unreadable
from harvester.sandbox.clicks import window_of

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
EARLIEST = int(datetime(2008, 1, 1, tzinfo=UTC).timestamp())
HEADER = "bitlink,clicks,scans,button_clicks"


def export(*lines: str, header: str = HEADER, **beside: Any) -> dict[str, Any]:
    """An answer with a CSV."""
    text = "\r\n".join([header, *lines])
    return {"data": "data:text/csv;base64," + base64.b64encode(text.encode()).decode(), **beside}


def names(*back_halves: str) -> frozenset[Bitlink]:
    return frozenset(parse(f"bit.ly/{each}") for each in back_halves)


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_request_names_the_links_and_the_time() -> None:
    requests = ExportRequests(Span(100, 200))
    name = export_name("B/é", [parse("bit.ly/a"), parse("es.pn/b")])
    assert requests.target(name) == ("/groups/B%2F%C3%A9/exports", "")
    assert json.loads(requests.body(name)) == {
        "export_type": "link_engagements_batch",
        "bitlinks": ["bit.ly/a", "es.pn/b"],
        "unix_from": 100,
        "unix_to": 200,
    }


def test_a_period_is_asked_for_as_it_is() -> None:
    query = query_for_period("referrers", Period("day", datetime(2026, 11, 22, tzinfo=UTC).date()), 50)
    span = span_of(query, NOW)
    assert span is not None
    assert span.first == datetime(2026, 11, 22, tzinfo=UTC).timestamp()
    assert span.last - span.first == 86_400


def test_nothing_is_asked_of_the_future() -> None:
    query = query_for_period("referrers", Period("month", NOW.date().replace(day=1)), 50)
    span = span_of(query, NOW)
    assert span is not None
    assert span.last == NOW.timestamp()
    later = query_for_period("referrers", Period("day", NOW.date() + timedelta(3)), 50)
    assert span_of(later, NOW) is None


def test_all_that_a_plan_keeps_begins_before_bitly_did_and_not_at_zero() -> None:
    span = span_of(query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), NOW)
    assert span is not None
    assert 0 < span.first < datetime(2008, 7, 1, tzinfo=UTC).timestamp()


@given(st.sampled_from(UNITS), st.integers(1, 2**31), st.integers(EARLIEST, int(NOW.timestamp())), st.data())
def test_the_time_contains_the_window_however_its_reference_is_rounded(
    unit: str, units: int, seconds: int, data: st.DataObject
) -> None:
    reference = datetime.fromtimestamp(seconds, UTC)
    span = span_of(query_for("referrers", unit, units, f"{reference:%Y-%m-%dT%H:%M:%S}Z", 50), NOW)
    assert span is not None
    window = window_of(unit, min(units, 30), reference)
    length = data.draw(st.sampled_from([timedelta(0), window.end - window_of(unit, 1, reference).start]))
    first, last = (window.start - length).timestamp(), min((window.end + length).timestamp(), NOW.timestamp())
    assert span.first <= max(first, EARLIEST)
    assert last <= span.last <= NOW.timestamp()


def test_engagements_are_more_than_an_export_states() -> None:
    assert [facet for facet in FACETS if lacks_in_export(facet)] == ["engagements", "engagements_summary"]


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_link_is_idle_if_its_line_states_zero_of_every_kind() -> None:
    found = read_export(export("bit.ly/a,0,0,0", "bit.ly/b,1,0,0", "bit.ly/c,0,2,0", "bit.ly/d,0,0,3"))
    assert found == Export(active=names("b", "c", "d"), idle=names("a"))


@pytest.mark.parametrize(
    "line",
    [
        "bit.ly/a,,0,0",
        "bit.ly/a,0,0,",
        "bit.ly/a,0,0",
        "bit.ly/a,0,0,0,0",
        "bit.ly/a,-1,0,0",
        "bit.ly/a,no,0,0",
        "x,0,0,0",
    ],
)
def test_a_line_that_does_not_state_it_says_nothing(line: str) -> None:
    found = read_export(export(line, "bit.ly/b,0,0,0"))
    assert found == Export(active=frozenset(), idle=names("b"))


@pytest.mark.parametrize(
    ("lines", "active", "idle"),
    [
        (("bit.ly/a,0,0,0", "bit.ly/a,1,0,0"), names("a"), frozenset()),
        (("bit.ly/a,1,0,0", "bit.ly/a,0,0,0"), names("a"), frozenset()),
        (("bit.ly/a,0,0,0", "bit.ly/a,,0,0"), frozenset(), frozenset()),
        (("bit.ly/a,,0,0", "bit.ly/a,0,0,0"), frozenset(), frozenset()),
        (("bit.ly/a,0,0,0", "bit.ly/a,0,0,0"), frozenset(), names("a")),
    ],
    ids=range(5),
)
def test_of_two_lines_the_one_against_idle_counts(
    lines: tuple[str, ...], active: frozenset[Bitlink], idle: frozenset[Bitlink]
) -> None:
    assert read_export(export(*lines)) == Export(active, idle)


@pytest.mark.parametrize(
    "header",
    [
        "scans,Button Clicks,clicks,Bitlink",
        "qr_scans,lib_button_clicks,total_clicks,id",
        "\ufeffScans,button_clicks,Clicks,short-url",
    ],
)
def test_columns_are_found_by_their_names(header: str) -> None:
    found = read_export(export("0,0,0,https://bit.ly/a", "0,0,5,BIT.LY/b", header=header))
    assert found == Export(active=names("b"), idle=names("a"))


@pytest.mark.parametrize(
    "header",
    [
        "bitlink,clicks,scans",
        "bitlink,scans,button_clicks",
        "clicks,scans,button_clicks",
        "bitlink,clicks,clicks,scans",
        "",
    ],
)
def test_an_answer_without_a_column_is_none(header: str) -> None:
    with pytest.raises(NotTheFacet):
        read_export(export("bit.ly/a,0,0,0", header=header))


def test_of_a_truncated_export_nothing_is_idle() -> None:
    for truncated in (True, "true", 1):
        found = read_export(export("bit.ly/a,0,0,0", "bit.ly/b,1,0,0", truncated=truncated, row_count=9))
        assert found == Export(names("b"), frozenset(), truncated=True)


def test_rows_that_were_counted_must_be_there() -> None:
    assert read_export(export("bit.ly/a,0,0,0", row_count=1, truncated=False)).idle == names("a")
    with pytest.raises(NotTheFacet, match="row_count is 2"):
        read_export(export("bit.ly/a,0,0,0", row_count=2, truncated=False))
    with pytest.raises(NotTheFacet, match="row_count is 2"):
        read_export({"row_count": 2, "file": export("bit.ly/a,0,0,0")})


def test_the_uri_is_found_wherever_it_is_and_only_one_is_right() -> None:
    assert read_export({"export": {"files": [export("bit.ly/a,0,0,0", row_count=1)]}}).idle == names("a")
    for body in ({}, {"a": export("bit.ly/a,0,0,0"), "b": export("bit.ly/a,1,0,0")}):
        with pytest.raises(NotTheFacet, match="data URIs"):
            read_export(body)


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:text/csv,a",
        "data:text/csv;base64,%%%",
        "data:;base64,/////w==",
        "data:;base64,",
        "data:;base64,ImE=",
        export("bit.ly/a,0,0,0")["data"].replace(";base64", ""),
    ],
)
def test_a_uri_that_cannot_be_read_is_no_answer(uri: str) -> None:
    with pytest.raises(NotTheFacet):
        read_export({"data": uri})


def test_responses_get_verdicts() -> None:
    requests = ExportRequests(Span(1, 2))

    def verdict(status: int, body: Any) -> Any:
        return requests.classify(status, {}, json.dumps(body).encode(), whole=True)

    good = verdict(200, export("bit.ly/a,0,0,0"))
    assert isinstance(good, Document)
    assert good.content == Export(frozenset(), names("a"))
    assert isinstance(verdict(200, {}), Unreadable)
    cut = json.dumps(export("bit.ly/a,0,0,0")).encode()
    assert isinstance(requests.classify(200, {}, cut, whole=False), Unreadable)
    assert isinstance(verdict(402, {"message": "UPGRADE_REQUIRED"}), PlanRefused)
    assert isinstance(verdict(403, {"message": "FORBIDDEN", "resource": "groups"}), Refused)
    assert isinstance(verdict(503, {}), Transient)


LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.just(export("bit.ly/a,0,0,0")["data"])
KEYS = st.sampled_from(["data", "row_count", "truncated"])


@given(st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(KEYS, each)))
def test_any_json_is_read_or_is_no_answer(body: Any) -> None:
    with contextlib.suppress(NotTheFacet):
        assert isinstance(read_export({"x": body}), Export)


def test_as_many_links_as_bitly_takes() -> None:
    assert MOST_LINKS == 200
