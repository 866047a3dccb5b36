"""Bitly's own specification: what it makes of a request, its known faults, and random bodies that it allows."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import jsonschema
from hypothesis import strategies as st

from harvester.bitly.exports import EXPORTS_ENDPOINT
from harvester.bitly.facets import FACETS, Facet
from harvester.bitly.query import BASE_URL, endpoint_of
from tests.support.commands import ROOT, TOKEN

FILE = ROOT / "tests/specification/bitly-openapi-2025-11.json"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
Schema = Mapping[str, Any]

_BITLINK = re.compile(r"^/bitlinks/([^/?]+)/([^/?]+)/")


@cache
def document() -> dict[str, Any]:
    """The specification as Bitly published it."""
    result: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return result


@cache
def mended() -> dict[str, Any]:
    """The specification with the routes of 2026: those of engagements take what those of clicks take."""
    paths = document()["paths"]
    newer = {endpoint_of(FACETS[facet]): {"get": _like(endpoint_of(FACETS[other]))} for facet, other in NEWER.items()}
    return {**document(), "paths": {**paths, **newer, EXPORTS_ENDPOINT: {"post": _EXPORT}}}


NEWER = {"engagements": "clicks", "engagements_summary": "clicks_summary"}
"""The facets of 2026, and those whose parameters they take."""


_GUID = {"name": "group_guid", "in": "path", "required": True, "schema": {"type": "string"}}
_EXPORT = {
    "operationId": "newer export",
    "parameters": [_GUID],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["export_type", "bitlinks", "unix_from", "unix_to"],
                    "properties": {
                        "export_type": {"type": "string", "enum": ["link_engagements_batch"]},
                        "bitlinks": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 200},
                        "unix_from": {"type": "integer", "minimum": 1},
                        "unix_to": {"type": "integer", "minimum": 1},
                    },
                }
            }
        },
    },
    "responses": {"200": {"description": "a CSV as a data URI"}},
}
"""The route of exports, as Bitly's reference has it."""


def _like(path: str) -> dict[str, Any]:
    return {**document()["paths"][path]["get"], "operationId": f"newer {path}"}


@cache
def _open_api(described: Callable[[], dict[str, Any]]) -> Any:
    from openapi_core import Config, OpenAPI  # noqa: PLC0415 - a second that most tests need not wait for

    return OpenAPI.from_dict(described(), config=Config(spec_validator_cls=None))


def check_as_published(target: str, headers: Mapping[str, str] | None = None) -> None:
    """Raise openapi-core's error if the specification as it was published does not allow a GET."""
    _check(document, target, HEADERS if headers is None else headers)


def check_request(target: str, headers: Mapping[str, str] | None = None) -> None:
    """Raise an error if the specification, but for its known faults, does not allow a GET.

    target: path and query below the base URL, as they are sent. Beside what openapi-core checks, every parameter must
    be declared and stand in the query once. openapi-core also lets a required one be missing that has a default.
    """
    # The first fault: a bitlink is two segments of a path, and the specification's parameter is one.
    one_segment = _BITLINK.sub(r"/bitlinks/\1%2F\2/", target)
    _check(mended, one_segment, HEADERS if headers is None else headers)
    names = [name for name, _ in parse_qsl(urlsplit(target).query, keep_blank_values=True)]
    assert len(names) == len(set(names))
    declared = declared_parameters(urlsplit(one_segment).path)
    assert {name for name, required in declared.items() if required} <= set(names) <= declared.keys()


def check_post(target: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Raise an error if the specification, with the routes of 2026, does not allow a POST of JSON."""
    _check(mended, target, HEADERS if headers is None else headers, body)
    assert not urlsplit(target).query


def declared_parameters(path: str) -> dict[str, bool]:
    """The query parameters that the specification declares for a path, and whether they are required.

    path: a template's, or a request's.
    """
    parts = path.split("/")
    for template, methods in mended()["paths"].items():
        words = template.split("/")
        if len(words) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(words, parts, strict=True)):
            found = [resolved(each) for each in methods.get("get", {}).get("parameters", ())]
            return {each["name"]: each.get("required", False) for each in found if each["in"] == "query"}
    raise AssertionError(f"no path {path}")


def _check(
    described: Callable[[], dict[str, Any]], target: str, headers: Mapping[str, str], posted: bytes | None = None
) -> None:
    from openapi_core.testing import MockRequest  # noqa: PLC0415

    base, parts = urlsplit(BASE_URL), urlsplit(target)
    arguments: Any = dict(parse_qsl(parts.query, keep_blank_values=True))
    host = f"{base.scheme}://{base.netloc}"
    path, method = base.path + parts.path, "get" if posted is None else "post"
    request = MockRequest(host, method, path, args=arguments, headers=dict(headers), data=posted)
    _open_api(described).validate_request(request)


# --- known faults -------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A fault of the specification. shown: whether it still has it."""

    means: str
    shown: Callable[[], bool]


def _has_no_path(target: str) -> bool:
    from openapi_core.templating.paths.exceptions import PathNotFound  # noqa: PLC0415

    try:
        check_as_published(target)
    except PathNotFound:
        return True
    return False


def _schema_refuses(facet: str, /, **body: Any) -> bool:
    return not is_valid(body, body_schema(facet))


def _is_no_open_api() -> bool:
    from openapi_spec_validator import OpenAPIV30SpecValidator  # noqa: PLC0415

    return any(OpenAPIV30SpecValidator(document()).iter_errors())


def _declares(status: str, *paths: str) -> bool:
    return any(status in document()["paths"][path]["get"]["responses"] for path in paths)


_FACETS = [endpoint_of(facet) for name, facet in FACETS.items() if name not in NEWER]
_OURS = [
    *_FACETS,
    "/groups",
    "/user/platform_limits",
    "/organizations/{organization_guid}/plan_limits",
]
FAULTS: dict[str, Fault] = {
    "bitlink": Fault(
        "a bitlink's slash is sent as it is (recorded), and the parameter is one segment",
        lambda: _has_no_path("/bitlinks/bit.ly/x/referrers?unit=day&units=1"),
    ),
    "unit": Fault(
        "a request without unit is answered (recorded)",
        lambda: all(declared_parameters(path)["unit"] for path in _FACETS),
    ),
    "units": Fault(
        "a request without units is answered (recorded)",
        lambda: all(declared_parameters(path)["units"] for path in _FACETS),
    ),
    "engagements": Fault(
        "both routes are of 2026",
        lambda: all(endpoint_of(FACETS[facet]) not in document()["paths"] for facet in NEWER),
    ),
    "exports": Fault("the route is of 2026", lambda: EXPORTS_ENDPOINT not in document()["paths"]),
    "integer-reference": Fault(
        "referrers_by_domains has an integer unit_reference (recorded)",
        lambda: _schema_refuses("referrers_by_domains", unit_reference=1582689642),
    ),
    "singular-facet": Fault(
        "referrers_by_domains calls itself referrers_by_domain (recorded)",
        lambda: _schema_refuses("referrers_by_domains", facet="referrers_by_domain"),
    ),
    "key-and-value": Fault(
        "a referrer within a domain has value and clicks (recorded), not key and value",
        lambda: _schema_refuses(
            "referrers_by_domains", referrers_by_domain=[{"referrers": [{"value": "direct", "clicks": 2}]}]
        ),
    ),
    "no-referrer-name": Fault(
        "the names of facets do not have referrer_name, a route like the others",
        lambda: _schema_refuses("referrer_name", facet="referrer_name"),
    ),
    "nothing-required": Fault(
        "an answer without metrics is none",
        lambda: all(is_valid({}, body_schema(facet)) for facet in FACETS if facet not in NEWER),
    ),
    "no-401": Fault(
        "a request without a token is answered 401 (recorded), which no route declares",
        lambda: not _declares("401", *_OURS),
    ),
    "no-429": Fault(
        "every route has a limit, and these do not declare it",
        lambda: (
            not _declares(
                "429",
                "/bitlinks/{bitlink}/referrer_name",
                "/user/platform_limits",
                "/organizations/{organization_guid}/plan_limits",
            )
        ),
    ),
    "no-open-api": Fault("the document breaks the rules of OpenAPI 3.0: an empty list of required", _is_no_open_api),
}
"""What is known to be wrong. A fault that is no longer there fails its test: then what it excuses must go too."""


# --- schemas and bodies -------------------------------------------------------------------------------------------

_ENGAGEMENT_KINDS = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("clicks", "scans", "lib_button_clicks")},
}
_SERIES = {
    "unit": {"type": "string", "enum": ["minute", "hour", "day", "week", "month"]},
    "units": {"type": "integer"},
    "unit_reference": {"type": "string"},
}
_NEWER_SCHEMAS: dict[str, Schema] = {
    "engagements": {
        "type": "object",
        "properties": {
            **_SERIES,
            "engagements": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "date": {"type": "string"},
                        "engagement_count": {"type": "integer"},
                        "engagements": _ENGAGEMENT_KINDS,
                    },
                },
            },
        },
    },
    "engagements_summary": {
        "type": "object",
        "properties": {**_SERIES, "total_engagements": {"type": "integer"}, "engagements": _ENGAGEMENT_KINDS},
    },
}
"""Of the routes of 2026, as Bitly's reference has them."""


def resolved(schema: Schema) -> Schema:
    """A schema without references at its top, and with what `allOf` collects in one object."""
    if reference := schema.get("$ref"):
        found: Any = document()
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        return resolved(found)
    if parts := schema.get("allOf"):
        parts = [resolved(part) for part in parts]
        properties = {name: each for part in [*parts, schema] for name, each in part.get("properties", {}).items()}
        required = [name for part in [*parts, schema] for name in part.get("required", ())]
        return {"type": "object", "properties": properties, "required": required}
    return schema


def body_schema(facet: str) -> Schema:
    """The schema of a facet's answer."""
    return _NEWER_SCHEMAS.get(facet) or route_schema(endpoint_of(FACETS[facet]))


def route_schema(path: str) -> Schema:
    """The schema of a route's answer. path: the template."""
    answer = document()["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    return resolved(answer)


def is_valid(body: Any, schema: Schema) -> bool:
    """Whether a body is one that a schema allows."""
    whole = {**schema, "components": document()["components"]}  # what references point to
    return not any(jsonschema.Draft4Validator(whole).iter_errors(body))


DATES = ["2026-11-22T00:00:00+0000", "2026-11-22T00:00:00Z", "2020-02-29", "2026-11-22T05:30:00+05:30"]
TEXTS = ["", "direct", "https://t.co/", "X (Formerly Twitter)", "a\u2028b\x00\x7f", "\u202eé🦡", "=1+1", *DATES]
COUNTS = st.one_of(st.integers(0, 99), st.sampled_from([2**31, 2**53 + 1, 2**61]))
"""Three of the largest add up to less than 2**63."""
INTEGERS = st.one_of(st.integers(0, 99), st.sampled_from([-1, 0, 2**31, 2**63 - 1, 2**63, 10**30, -(2**63) - 1]))


def bodies(schema: Schema) -> st.SearchStrategy[Any]:
    """Every value that a schema allows, with any of an object's fields left out that it does not require."""
    schema = resolved(schema)
    match schema.get("type", "object"):
        case "object":
            fields = {name: bodies(each) for name, each in schema.get("properties", {}).items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
        case "array":
            return st.lists(bodies(schema["items"]), max_size=3)
        case "string":
            return st.sampled_from(schema["enum"]) if "enum" in schema else st.sampled_from(TEXTS) | st.text(max_size=9)
        case "integer":
            return INTEGERS
        case "boolean":
            return st.booleans()
        case other:
            raise AssertionError(f"no values of type {other}")


def whole_bodies(facet: Facet) -> st.SearchStrategy[Any]:
    """Answers with all that a facet's schema has, as Bitly means them: counts, moments, and the facet's own name."""
    named = st.just(ANSWERS_NAME.get(facet.name, facet.name))
    return _whole(body_schema(facet.name), {"facet": named, "date": st.sampled_from(DATES)})


ANSWERS_NAME = {"referrer_name": "referring_networks"}
"""What the specification lets a facet's answers call it, where that is not the facet's name."""


def _whole(schema: Schema, meant: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    schema = resolved(schema)
    match schema.get("type", "object"):
        case "object":
            properties = schema.get("properties", {}).items()
            return st.fixed_dictionaries(
                {name: meant[name] if name in meant else _whole(each, meant) for name, each in properties}
            )
        case "array":
            return st.lists(_whole(schema["items"], meant), max_size=3)
        case "integer":
            return COUNTS
        case _:
            return bodies(schema)
