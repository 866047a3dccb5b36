"""The verdict on one of Bitly's responses: what it means for the call that was made.

The body's `message` decides before the status does. Bitly has sent RATE_LIMIT_EXCEEDED as 403 (recorded in 2019), sends
a spent month as 429, where waiting is useless, and answers 403 both for somebody else's link and for a revoked token.
A client that looks at the status alone gives good links up, or spends its quota on hopeless retries.

A link is refused, which is final, only on an answer that is documented or recorded as being about that link. Any other
answer is Unknown: the call has failed and can be made again later, so that no link is lost to a guess. Whether the
answer came for this link alone, or for everybody, is not decided here but by `client.client`.

Every rule has a sample in tests/samples.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeGuard

import orjson

from harvester.bitly.facets import BODY_LIMIT, INT64_MAX, Facet, Metric, NotTheFacet
from harvester.clock import Hint, as_utc, from_epoch, hint, utc_iso
from harvester.jsonlines import lenient_json, object_in

KEPT_BODY = 2048
"""Bytes kept from the beginning of a body that no rule covers."""
_MESSAGE_LIMIT = 200
"""Characters kept of a text from Bitly."""


@dataclass(slots=True)  # not frozen: to set the fields of a frozen one takes three times as long, once a call
class Answer:
    """The facet's metrics; the call gets a row.

    clicks_listed: the sum over metrics. units_returned: the units that Bitly used, fewer than requested where the plan
    limits history; None if the response does not say. totals: counts beside the metrics, by the row's columns.
    larger_size: that of the request, if it asked for more metrics than the query; None for the query's own.
    """

    metrics: list[Metric]
    clicks_listed: int
    units_returned: int | None
    unit_reference_returned: str | None
    totals: Mapping[str, int | None] = field(default_factory=dict)
    larger_size: int | None = None


@dataclass(slots=True, kw_only=True)
class Document(Answer):
    """The answer of a route that is no facet's. content: what was read in it."""

    content: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A definite no for this link, which is final.

    no_route: the server did not know the path at all. That is final only once it has shown that it knows others.
    """

    status: int
    message: str
    no_route: bool = False


@dataclass(frozen=True, slots=True)
class Transient:
    """A failure that may pass: retry with backoff. status: HTTP's, or None if no response came."""

    status: int | None
    message: str
    hint: Hint = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A complete 200 that is not the facet's JSON: retry once, then the call has failed. body: its beginning."""

    status: int
    message: str
    body: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A response that no rule covers: the call has failed, but is never refused. body: its beginning."""

    status: int
    message: str
    body: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """The limit of the minute or the hour is spent: all calls wait, and this one loses no attempt."""

    status: int
    message: str
    hint: Hint = None


@dataclass(frozen=True, slots=True)
class MonthSpent:
    """The account's monthly limit is spent: waiting is useless, so the run stops."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """The token is missing, wrong or revoked: every call would get this response."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class PlanRefused:
    """The account's plan does not include the facet: every call would get this response."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class ParameterRefused:
    """Bitly rejects a query parameter, so every call would get this response. field: the parameter's name."""

    status: int
    message: str
    field: str


NoAnswer = Transient | Unreadable | Unknown
"""The verdicts that are no word of Bitly's on the link. When nearly all calls get one, the server is out."""
Failure = Refused | NoAnswer
"""The verdicts with which a call can end without a row."""
ForEveryCall = MonthSpent | TokenRefused | PlanRefused | ParameterRefused
"""The verdicts that every further call would get too."""
No = Refused | ForEveryCall
"""The verdicts that are Bitly's word on the link, or on every call, and not a row."""
Verdict = Answer | Throttled | Failure | ForEveryCall

_TRANSIENT_STATUSES = frozenset({408, 425, *range(500, 600)})
"""A request that timed out or came too early, and all that servers and the proxies before them say of themselves."""
_TOKEN_WORDS = frozenset({"TOKEN", "AUTHORIZATION", "UNAUTHORIZED", "UNAUTHENTICATED"})
_TOKEN_FIELDS = frozenset({"ACCESS_TOKEN", "TOKEN", "AUTHORIZATION"})
_LINK_FIELDS = frozenset({"BITLINK", "BITLINK_ID", "LINK", "LINK_ID", "ID", "DOMAIN", "HASH", "BACK_HALF"})
_QUERY_FIELDS = frozenset({"UNIT", "UNITS", "UNIT_REFERENCE", "SIZE"})


def is_plain_no(verdict: Verdict) -> TypeGuard[Refused]:
    """Return whether a verdict refuses a link on a route that the server knows."""
    return isinstance(verdict, Refused) and not verdict.no_route


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    facet: Facet,
    *,
    check_echo: Callable[[object, str | None], None] | None = None,
    whole: bool = True,
) -> Verdict:
    """Return the verdict on a response to a call.

    headers: with case-insensitive names, as aiohttp has them. whole: False if the body was cut off at BODY_LIMIT.
    check_echo: called with the unit and the unit_reference that an answer repeats; raises NotTheFacet if they are not
    the request's.

    Raises nothing: any bytes get a verdict.
    """
    if status != 200:
        return classify_error(status, headers, body)
    try:
        record = _object_in_answer(body, whole=whole)
        if record.get("message") and (limit := _classify_limit(200, headers, _message_of(record))):
            return limit
        metrics = facet.metrics_in(record)
        reference = _reference_text(record.get("unit_reference"))
        if check_echo is not None:
            check_echo(record.get("unit"), reference)
        clicks_listed = sum([metric["clicks"] or 0 for metric in metrics])
        if clicks_listed > INT64_MAX:
            raise NotTheFacet("clicks do not add up to a count")
    except NotTheFacet as error:
        return Unreadable(200, str(error), body_excerpt(body))
    units = record.get("units")
    return Answer(
        metrics=metrics,
        clicks_listed=clicks_listed,
        units_returned=units if type(units) is int and -INT64_MAX <= units <= INT64_MAX else None,
        unit_reference_returned=reference,
        totals=facet.totals_in(record),
    )


def classify_document(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    read: Callable[[Mapping[str, Any]], object],
    *,
    whole: bool = True,
) -> Verdict:
    """Return the verdict on a response of a route that is no facet's; a good one is a Document.

    read: the decoded JSON object of a 200 → its content; raises NotTheFacet. The rest as for `classify`.
    """
    if status != 200:
        return classify_error(status, headers, body)
    try:
        record = _object_in_answer(body, whole=whole)
        if record.get("message") and (limit := _classify_limit(200, headers, _message_of(record))):
            return limit
        content = read(record)
    except NotTheFacet as error:
        return Unreadable(200, str(error), body_excerpt(body))
    return Document(metrics=[], clicks_listed=0, units_returned=None, unit_reference_returned=None, content=content)


def classify_error(status: int, headers: Mapping[str, str], body: bytes) -> Verdict:
    """Return the verdict on a response other than 200, on any route. Raises nothing."""
    error = object_in(body)
    message = _message_of(error)
    if limit := _classify_limit(status, headers, message):
        return limit
    if status in _TRANSIENT_STATUSES:
        return Transient(status, truncate(message) or "no message", hint(headers))
    return _classify_refusal(status, headers, body, error, message)


def _object_in_answer(body: bytes, *, whole: bool) -> dict[str, Any]:
    """Return the JSON object of a 200. What orjson refuses, and other programs write, is read all the same.

    Raises:
        NotTheFacet: it is no JSON object, or was cut off.
    """
    if not whole:
        raise NotTheFacet(f"larger than {BODY_LIMIT} bytes")
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            record = lenient_json(body)
        except ValueError:
            raise NotTheFacet("not JSON") from None
    if type(record) is not dict:
        raise NotTheFacet("not a JSON object")
    return record


def _message_of(record: Mapping[str, Any]) -> str:
    return str(record.get("message") or "").strip().upper()


def _classify_limit(status: int, headers: Mapping[str, str], message: str) -> MonthSpent | Throttled | None:
    """Return the verdict on a response that says that a limit is spent, whatever its status; None for any other."""
    # The month before the throttling, because both come as 429, and the message before the status, because throttling
    # has come as 403: https://dev.bitly.com/docs/getting-started/rate-limits, and the docstring above.
    if message == "API_USAGE_LIMIT_EXCEEDED" or message.startswith("MONTHLY_"):
        return MonthSpent(status, truncate(message))
    if status == 429 or message == "RATE_LIMIT_EXCEEDED" or (status == 403 and "X-Ratelimit-Reason" in headers):
        return Throttled(status, truncate(message) or "no message", hint(headers))
    return None


def _reference_text(reference: object) -> str | None:
    """Return the response's own unit_reference in UTC, or unchanged if it cannot be parsed.

    Recorded as `2020-02-26T04:00:42+0000`, and for referrers_by_domains as epoch seconds, against the specification.
    """
    return _moment_text(reference) if type(reference) is str or type(reference) is int else None


@lru_cache(16)  # the query fixes it, so nearly all answers of a run have the same one
def _moment_text(reference: str | int) -> str:
    try:
        if isinstance(reference, int):
            return utc_iso(from_epoch(reference))
        return utc_iso(as_utc(datetime.fromisoformat(reference)))
    except (ValueError, OverflowError, OSError):
        return truncate(str(reference))


def _classify_refusal(
    status: int, headers: Mapping[str, str], body: bytes, error: Mapping[str, Any], message: str
) -> Verdict:
    """Distinguish a refusal of this link from a refusal of every call; return Unknown if it is clearly neither."""
    text = truncate(message)
    plain = headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/plain"
    fields = _rejected_fields(error, message) if status == 400 else frozenset()
    if status == 401 or _is_about_the_token(message) or fields & _TOKEN_FIELDS:
        return TokenRefused(status, text or "UNAUTHORIZED")
    if status == 402:
        return PlanRefused(status, text or "UPGRADE_REQUIRED")
    if status == 403 and message == "FORBIDDEN":
        # With a `resource` the link belongs to somebody else; without, the token is bad or revoked (both recorded).
        return Refused(status, text) if error.get("resource") else TokenRefused(status, text)
    if status == 404 and message == "NOT_FOUND":
        return Refused(status, text)
    if status == 404 and plain and not error:
        return Refused(status, body[:_MESSAGE_LIMIT].decode(errors="replace").strip(), no_route=True)
    if status == 410 and (message == "GONE" or not body.strip()):
        return Refused(status, text or "GONE")
    if parameters := fields & _QUERY_FIELDS:
        return ParameterRefused(status, text, min(parameters).lower())
    if fields & _LINK_FIELDS:
        return Refused(status, text)
    return Unknown(status, text or f"HTTP {status}", body_excerpt(body))


def _is_about_the_token(message: str) -> bool:
    """Return whether an error code is about the token, as INVALID_ACCESS_TOKEN and MISSING_ARG_ACCESS_TOKEN are.

    Other clients have met both of these. A sentence is no code: it may quote anything.
    """
    return re.fullmatch(r"[A-Z_]+", message) is not None and not _TOKEN_WORDS.isdisjoint(message.split("_"))


def _rejected_fields(error: Mapping[str, Any], message: str) -> set[str]:
    """Return the names, in upper case, of the request's fields that a 400 rejects."""
    fields = {message.removeprefix("INVALID_ARG_")} if message.startswith("INVALID_ARG_") else set()
    details = error.get("errors")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(detail.get("field"), str):
            fields.add(detail["field"].strip().upper())
    return fields


def reason(verdict: Verdict) -> str:
    """Return the status and message of a verdict that is no Answer."""
    assert not isinstance(verdict, Answer)
    status = "no answer" if verdict.status is None else str(verdict.status)
    if verdict.message.startswith(("no ", f"{status} ") if verdict.status is None else (status, f"HTTP {status}")):
        return verdict.message  # the text says it itself
    return f"{status} {verdict.message}".strip()


def not_unpacked(verdict: Failure | Throttled | ForEveryCall, flaw: str, *, cut: bool) -> Verdict:
    """Return what a verdict becomes if the response's body could not be unpacked. flaw: why; cut: its end is missing.

    Nobody can read whose 404 it was, so it is one of those that are not final by themselves.
    """
    why = truncate(f"{verdict.message} (the body could not be unpacked: {flaw})".lstrip())
    if cut and isinstance(verdict, Unreadable):
        return Transient(verdict.status, why)
    if isinstance(verdict, Unknown) and verdict.status == 404:
        return Refused(404, why, no_route=True)
    return replace(verdict, message=why)


def body_excerpt(body: bytes) -> str:
    """Return the beginning of a body, as text for a person to look at."""
    return body[:KEPT_BODY].decode(errors="replace")


def truncate(text: str) -> str:
    """Return at most the first _MESSAGE_LIMIT characters of a text from Bitly."""
    return text[:_MESSAGE_LIMIT]
