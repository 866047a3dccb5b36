"""The verdict on each kind of response, with a sample for every rule, and the hint to wait."""

import json
from dataclasses import fields as fields_of
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from harvester.bitly.facets import BODY_LIMIT, FACETS, NotTheFacet
from harvester.bitly.query import Query, check_echo
from harvester.bitly.verdicts import (
    KEPT_BODY,
    Answer,
    Document,
    MonthSpent,
    ParameterRefused,
    Refused,
    Throttled,
    TokenRefused,
    Transient,
    Unknown,
    Unreadable,
    Verdict,
    classify,
    classify_document,
    is_plain_no,
    not_unpacked,
    reason,
)
from harvester.clock import hint

REFERRERS = FACETS["referrers"]
SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*.json"))
VERDICTS: tuple[Any, ...] = get_args(Verdict)


def load(sample: Path) -> dict[str, Any]:
    """A sample: rule (in words), status, headers, body, verdict (a class's name), fields (those that matter).

    Optional: facet (default referrers), whole (default true), asked (the query, whose echo is checked).
    """
    result: dict[str, Any] = json.loads(sample.read_text(encoding="utf-8"))
    return result


def plain(value: Any) -> Any:
    """A field as a sample writes it: a moment as text."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.stem for sample in SAMPLES])
def test_each_sample_gets_its_verdict(sample: Path) -> None:
    said = load(sample)
    found = classify(
        said["status"],
        CIMultiDict(said["headers"]),
        said["body"].encode(),
        FACETS[said.get("facet", "referrers")],
        check_echo=partial(check_echo, Query(**said["asked"])) if "asked" in said else None,
        whole=said.get("whole", True),
    )
    assert type(found).__name__ == said["verdict"], said["rule"]
    assert {name: plain(getattr(found, name)) for name in said["fields"]} == said["fields"]


def test_every_verdict_has_a_sample() -> None:
    assert {load(sample)["verdict"] for sample in SAMPLES} == {kind.__name__ for kind in VERDICTS}


def test_a_sample_says_its_rule_and_nothing_a_verdict_lacks() -> None:
    names = {kind.__name__: {field.name for field in fields_of(kind)} for kind in VERDICTS}
    for sample in SAMPLES:
        said = load(sample)
        assert said["rule"]
        assert set(said["fields"]) <= names[said["verdict"]], sample.name


@pytest.mark.parametrize("facet", FACETS)
def test_each_facet_has_a_sample_with_metrics_that_is_read(facet: str) -> None:
    found = [load(sample) for sample in SAMPLES]
    assert any(each.get("facet", "referrers") == facet and each["fields"].get("metrics") for each in found)


def test_an_answer_that_was_not_understood_is_kept_up_to_2_kib() -> None:
    for status in (200, 418):
        found = classify(status, CIMultiDict(), b"x" * 10_000, REFERRERS)
        assert isinstance(found, Unreadable | Unknown)
        assert found.body == "x" * KEPT_BODY


def test_keys_beside_value_and_clicks_do_not_reach_the_row() -> None:
    found = classify(200, CIMultiDict(), b'{"metrics":[{"value":"a","clicks":1,"new":{"x":[]}}]}', REFERRERS)
    assert isinstance(found, Answer)
    assert found.metrics == [{"value": "a", "clicks": 1}]


def test_the_same_answer_with_another_message_case_means_the_same() -> None:
    found = classify(429, CIMultiDict(), b'{"message":" monthly_rate_limit_exceeded "}', REFERRERS)
    assert isinstance(found, MonthSpent)


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"INTERNAL_ERROR","metrics":null,"unit":"day","units":-1,"facet":"referrers"}',
        b'{"error":"upstream timeout","metrics":[],"unit":"day","units":-1,"facet":"referrers"}',
        b'{"metrics":null,"unit":"","units":0,"unit_reference":"","facet":""}',
        b'{"metrics":null,"unit":null,"units":null,"unit_reference":null,"facet":null}',
    ],
)
def test_an_error_or_a_zero_value_in_place_of_metrics_is_no_row_without_clicks(body: bytes) -> None:
    assert isinstance(classify(200, CIMultiDict(), body, REFERRERS), Unreadable)


@pytest.mark.parametrize("status", [408, 425, *range(500, 600)])
def test_what_servers_and_proxies_say_of_themselves_is_transient(status: int) -> None:
    assert isinstance(classify(status, CIMultiDict(), b"<html>", REFERRERS), Transient)


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(
    "message",
    ["INVALID_ACCESS_TOKEN", "MISSING_ARG_ACCESS_TOKEN", "EXPIRED_TOKEN", "UNAUTHORIZED", "MISSING_AUTHORIZATION"],
)
def test_a_code_about_the_token_is_a_refused_token_with_any_status(status: int, message: str) -> None:
    body = json.dumps({"message": message, "resource": "bitlinks"}).encode()
    assert classify(status, CIMultiDict(), body, REFERRERS) == TokenRefused(status, message)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "INVALID_ARG_SIZE"}, ParameterRefused(400, "INVALID_ARG_SIZE", "size")),
        ({"message": "INVALID_ARG_ACCESS_TOKEN"}, TokenRefused(400, "INVALID_ARG_ACCESS_TOKEN")),
        ({"message": "INVALID_ARG_BITLINK"}, Refused(400, "INVALID_ARG_BITLINK")),
        ({"message": "SIZE"}, "SIZE"),
        ({"message": "BAD", "errors": [{"field": " unit "}]}, ParameterRefused(400, "BAD", "unit")),
        ({"message": "B", "errors": [7, {}, {"field": 7}, {"field": "units"}]}, ParameterRefused(400, "B", "units")),
        ({"message": "BAD", "errors": [{"field": "token"}, {"field": "size"}]}, TokenRefused(400, "BAD")),
        ({"message": "BAD", "errors": [{"field": "hash"}]}, Refused(400, "BAD")),
        ({"message": "BAD", "errors": {"field": "size"}}, "BAD"),
        ({"errors": [{"field": "colour"}]}, "HTTP 400"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_400_is_whose_field_it_names(error: dict[str, Any], expected: Verdict | str) -> None:
    """By its message, or by one of its errors. Where it names none that is known, nothing is refused."""
    body = json.dumps(error).encode()
    found = classify(400, CIMultiDict(), body, REFERRERS)
    assert found == (Unknown(400, expected, body.decode()) if isinstance(expected, str) else expected)


@pytest.mark.parametrize(
    ("body", "message"), [(b"<html>", "not JSON"), (b"[]", "not a JSON object"), (b"{}", "no list")]
)
def test_a_document_that_is_none_is_unreadable_and_says_why(body: bytes, message: str) -> None:
    def read(record: Any) -> Any:
        if "links" not in record:
            raise NotTheFacet("no list")
        return record["links"]

    found = classify_document(200, CIMultiDict(), body, read)
    assert found == Unreadable(200, message, body.decode())
    good = classify_document(200, CIMultiDict(), b'{"links": [1]}', read)
    assert good == Document([], 0, None, None, content=[1])
    for message, verdict in (("RATE_LIMIT_EXCEEDED", Throttled), ("MONTHLY_LIMIT_EXCEEDED", MonthSpent)):
        limited = json.dumps({"message": message, "links": [1]}).encode()
        assert classify_document(200, CIMultiDict(), limited, read) == verdict(200, message)


def test_bytes_that_are_not_utf_8_are_read_and_can_be_written() -> None:
    found = classify(200, CIMultiDict(), b'{"metrics":[{"value":"\xff","clicks":1}]}', REFERRERS)
    assert found == Answer([{"value": "\ufffd", "clicks": 1}], 1, None, None)
    assert orjson.dumps(found.metrics)


STATUSES = st.one_of(
    st.integers(0, 999),
    st.sampled_from([200, 400, 401, 402, 403, 404, 405, 407, 410, 429, 500, 502, 503, 504]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["FORBIDDEN", "RATE_LIMIT_EXCEEDED", "INVALID_ARG_", "INVALID_ARG_SIZE", "NOT_FOUND", "GONE"]),
)
KEYS = st.sampled_from(
    ["message", "resource", "errors", "field", "metrics", "value", "clicks", "units", "unit_reference", "facet"]
)
TREES = st.recursive(
    SCALARS, lambda deeper: st.one_of(st.lists(deeper, max_size=4), st.dictionaries(KEYS, deeper, max_size=6))
)
BODIES = st.one_of(
    st.binary(max_size=300),
    TREES.map(lambda tree: json.dumps(tree).encode()),
    st.fixed_dictionaries({"metrics": st.lists(st.fixed_dictionaries({"value": SCALARS, "clicks": SCALARS}))}).map(
        lambda tree: json.dumps(tree).encode()
    ),
)
DATES = st.builds(
    "{:02d} {} {} {:02d}:{:02d}:{:02d} {}".format,
    st.integers(0, 32),
    st.sampled_from(["Jan", "Feb", "Dec"]),
    st.sampled_from(["0", "1", "0001", "1969", "2026", "9999", "10000", "99999999999999999999"]),
    st.integers(0, 25),
    st.integers(0, 60),
    st.integers(0, 61),
    st.sampled_from(["GMT", "-0000", "+0000", "-2359", "+2359", "+9999", "+99999999999", "EST", "x", ""]),
)
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "X-Ratelimit-Reason", "Content-Type"]),
    st.one_of(st.text(max_size=30), DATES, st.sampled_from(["text/plain", "9" * 400, "-1", "1e3", "inf", "٣"])),
)


@given(STATUSES, HEADERS, BODIES, st.booleans())
def test_an_answer_of_any_bytes_gets_a_verdict(status: int, headers: dict[str, str], body: bytes, whole: bool) -> None:
    found = classify(status, CIMultiDict(headers), body, REFERRERS, whole=whole)
    assert isinstance(found, VERDICTS)
    if status == 200:
        assert isinstance(found, Answer | Unreadable | Throttled | MonthSpent)
    else:
        assert not isinstance(found, Answer | Unreadable)
    json.dumps([plain(getattr(found, field.name)) for field in fields_of(found)], ensure_ascii=False).encode()


@given(BODIES)
def test_an_answers_clicks_add_up_in_64_bits(body: bytes) -> None:
    found = classify(200, CIMultiDict(), body, REFERRERS)
    if isinstance(found, Answer):
        assert found.clicks_listed == sum(metric["clicks"] for metric in found.metrics)
        assert 0 <= found.clicks_listed < 2**63
        assert all(set(metric) == {"value", "clicks"} for metric in found.metrics)


def test_json_nested_very_deeply_gets_a_verdict() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert isinstance(classify(200, CIMultiDict(), deep, REFERRERS), Unreadable)
    assert isinstance(classify(403, CIMultiDict(), deep, REFERRERS), Unknown)


def test_the_body_limit_is_what_the_design_says() -> None:
    assert BODY_LIMIT == 4 * 1024 * 1024


# --- the hint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30.0),
        (" 30 ", 30.0),
        ("0", None),
        ("000", None),
        ("", None),
        ("-5", None),
        ("1.5", 2.0),
        ("0.5", 1.0),
        ("30.0", 30.0),
        ("0.0", None),
        ("-0", None),
        ("+30", None),
        ("1e3", None),
        ("1_000", None),
        ("0x1e", None),
        ("30s", None),
        ("30, 60", None),
        ("31622400", 31622400.0),
        # Moments: seconds and milliseconds since 1970.
        ("1795413600", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("1795413600000", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        (" 1577836800 ", datetime(2020, 1, 1, tzinfo=UTC)),
        ("1795413600.5", None),
        ("-1795413600", None),
        # Too large for a wait, and no moment near the present: a wait, which is capped.
        ("1577836799", 157783679.0),
        ("4102444800", 410244480.0),
        ("179541360000", 179541360.0),
        ("9" * 5000, 999999999.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("Mon, 23 Nov 2026 06:00:00 GMT", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("Mon, 23 Nov 2026 08:00:00 +0200", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("Mon, 23 Nov 2026 06:00:00 -0000", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("Fri, 32 Nov 2026 06:00:00 GMT", None),
    ],
)
def test_a_hint_is_seconds_or_a_date_and_nothing_else(text: str, expected: object) -> None:
    assert hint(CIMultiDict({"Retry-After": text})) == expected


def test_without_the_header_there_is_no_hint() -> None:
    assert hint(CIMultiDict()) is None


def test_a_date_in_the_past_is_returned_unchanged() -> None:
    assert hint(CIMultiDict({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"})) == datetime(
        1994, 11, 6, 8, 49, 37, tzinfo=UTC
    )


@pytest.mark.parametrize("text", ["Fri, 31 Dec 9999 23:59:59 -0100", "Mon, 01 Jan 0001 00:00:00 +0100"])
def test_a_date_beyond_the_calendar_is_ignored(text: str) -> None:
    found = hint(CIMultiDict({"Retry-After": text}))
    assert found is None or isinstance(found, datetime)


@given(st.one_of(DATES, st.text(max_size=40), st.integers().map(str)))
def test_a_hint_of_any_text_is_positive_seconds_or_a_moment_in_utc_or_none(text: str) -> None:
    found = hint(CIMultiDict({"Retry-After": text}))
    if isinstance(found, datetime):
        assert found.utcoffset() == timedelta(0)
    else:
        assert found is None or 0 < found < 1e10


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (Transient(None, "no connection within 10 s"), "no connection within 10 s"),
        (Transient(None, "api.example cannot be reached"), "no answer api.example cannot be reached"),
        (Refused(404, "404 page not found", no_route=True), "404 page not found"),
        (Unknown(403, "HTTP 403", ""), "HTTP 403"),
        (Refused(404, "NOT_FOUND"), "404 NOT_FOUND"),
    ],
    ids=["no connection", "unreachable", "plain 404", "no message", "message"],
)
def test_a_reason_says_the_status_once(verdict: Verdict, text: str) -> None:
    assert reason(verdict) == text


@pytest.mark.parametrize(
    ("verdict", "plain"),
    [
        (Refused(404, "NOT_FOUND"), True),
        (Refused(404, "404 page not found", no_route=True), False),
        (TokenRefused(401, "UNAUTHORIZED"), False),
        (Unknown(418, "HTTP 418", ""), False),
    ],
)
def test_a_plain_no_is_one_that_is_final_by_itself(verdict: Verdict, plain: bool) -> None:
    assert is_plain_no(verdict) is plain


def test_a_404_that_cannot_be_unpacked_is_not_final_by_itself() -> None:
    verdict = classify(404, CIMultiDict({"Content-Type": "application/json"}), b"\x1f\x8b", REFERRERS)
    assert isinstance(verdict, Unknown)
    found = not_unpacked(verdict, "gzip", cut=False)
    assert found == Refused(404, "HTTP 404 (the body could not be unpacked: gzip)", no_route=True)
    assert not_unpacked(Unreadable(200, "not JSON", ""), "gzip", cut=True) == Transient(
        200, "not JSON (the body could not be unpacked: gzip)"
    )
