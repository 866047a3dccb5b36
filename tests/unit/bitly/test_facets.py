"""What an answer lists as a facet's metrics, when it is full, and what a person calls a metric."""

from typing import Any

import pytest

from harvester.bitly.facets import FACETS, INT64_MAX, NotTheFacet

NESTED = FACETS["referrers_by_domains"]


@pytest.mark.parametrize(
    ("facet", "metric", "label"),
    [
        ("referrers", {"value": "direct", "clicks": 2}, "direct"),
        ("referrers", {"value": "", "clicks": 2}, ""),
        ("cities", {"city": "Bonn", "subregion": None, "region": "", "country": "DE", "clicks": 1}, "Bonn, , , DE"),
        ("clicks", {"date": "2026-11-23T00:00:00Z", "clicks": 1}, "2026-11-23T00:00:00Z"),
        ("clicks_summary", {"clicks": 1}, "total"),
        ("engagements_summary", {"engagement_count": 1, "clicks": None, "scans": 1, "lib_button_clicks": 0}, "total"),
    ],
)
def test_a_metric_is_called_by_its_texts(facet: str, metric: dict[str, Any], label: str) -> None:
    assert FACETS[facet].label(metric) == label


def test_a_metric_differs_by_each_of_its_texts() -> None:
    first, second = ({"network": network, "value": value, "clicks": 1} for network, value in (("a", "b"), ("ab", "")))
    assert NESTED.identity(first) == "a\x1fb"
    assert NESTED.identity(second) == "ab\x1f"


@pytest.mark.parametrize(
    ("facet", "values", "size", "full"),
    [
        ("referrers", "ab", 2, True),
        ("referrers", "ab", 3, False),
        ("referrers", "", None, False),
        ("referrers_by_domains", "aab", 3, True),  # metrics
        ("referrers_by_domains", "aabc", 3, True),  # groups
        ("referrers_by_domains", "aaabc", 3, True),  # members of a group
        ("referrers_by_domains", "aabbc", 4, False),
        ("referrers_by_domains", "aab", None, False),
    ],
)
def test_an_answer_is_full_if_anything_in_it_is_as_many_as_requested(
    facet: str, values: str, size: int | None, full: bool
) -> None:
    metrics = [{"network": value, "value": value, "clicks": 1} for value in values]
    assert FACETS[facet].is_full(metrics, size) is full


@pytest.mark.parametrize(
    ("found", "totals"),
    [
        ({"other_city_clicks": 3, "no_city_clicks": 0}, {"other_city_clicks": 3, "no_city_clicks": 0}),
        ({"other_city_clicks": -1, "no_city_clicks": "3"}, {"other_city_clicks": None, "no_city_clicks": None}),
        ([], {"other_city_clicks": None, "no_city_clicks": None}),
    ],
    ids=range(3),
)
def test_counts_beside_the_metrics_are_read_or_missing(found: Any, totals: dict[str, int | None]) -> None:
    assert FACETS["cities"].totals_in({"other_metrics": found}) == totals
    assert FACETS["devices"].totals_in({"other_metrics": found}) == {}


@pytest.mark.parametrize(
    ("facet", "named", "right"),
    [
        ("referrers", "referrers", True),
        ("referrers", " Referrer ", True),
        ("referrers", None, True),
        ("referrers", "countries", False),
        ("referrers", "", True),
        ("referrer_name", "", True),
        ("referrers_by_domains", "referrers_by_domain", True),
        ("referrer_name", "referring_networks", True),
        ("referrers", "referring_networks", False),
    ],
)
def test_an_answer_that_names_another_facet_is_none(facet: str, named: Any, right: bool) -> None:
    body = {"facet": named, "metrics": [], "referrers_by_domain": []}
    if right:
        assert FACETS[facet].metrics_in(body) == []
    else:
        with pytest.raises(NotTheFacet, match="names another facet"):
            FACETS[facet].metrics_in(body)


@pytest.mark.parametrize("complaint", ["message", "error", "errors", "description"])
def test_an_error_beside_no_metrics_is_no_answer_without_clicks(complaint: str) -> None:
    with pytest.raises(NotTheFacet, match="an error in place of metrics"):
        FACETS["referrers"].metrics_in({"metrics": [], complaint: "x"})
    assert FACETS["referrers"].metrics_in({"metrics": [{"value": "a", "clicks": 1}], complaint: "x"})


@pytest.mark.parametrize(
    ("facet", "body", "why"),
    [
        ("referrers", {"metrics": {}}, "no list of metrics"),
        ("referrers", {}, "no list of metrics"),
        ("referrers", {"unit": "day", "units": 1, "unit_reference": "x"}, None),
        ("referrers", {"unit": "day", "units": 1, "unit_reference": "x", "facet": "referrers"}, None),
        ("referrers", {"unit": "day", "units": 1, "facet": "referrers"}, "no list of metrics"),
        ("referrers", {"unit": "day", "units": 1, "unit_reference": "x", "rows": []}, "no list of metrics"),
        ("referrers", {"metrics": None, "unit": "day"}, None),
        ("referrers", {"metrics": None, "unit": ""}, "no list of metrics"),
        ("referrers", {"metrics": ["x"]}, "an entry of metrics is not an object"),
        ("referrers", {"metrics": [{"value": None, "clicks": 1}]}, "a value is not a string"),
        ("referrers", {"metrics": [{"value": "a", "clicks": INT64_MAX + 1}]}, "clicks is not a count"),
        ("referrers", {"metrics": [{"value": "a", "clicks": -1}]}, "clicks is not a count"),
        ("referrers", {"metrics": [{"value": "a", "clicks": True}]}, "clicks is not a count"),
        ("devices", {"metrics": [{"device_type": 1, "clicks": 1}]}, "a device_type is not a string"),
        ("devices", {"metrics": [{"device_type": None, "clicks": 1}]}, "a device_type is not a string"),
        ("devices", {"metrics": [{"device_type": "Other", "clicks": None}]}, "clicks is not a count"),
        ("clicks", {"link_clicks": [{"date": "soon", "clicks": 1}]}, "a date is not a moment"),
        ("clicks", {"link_clicks": [{"date": "0001-01-01T00:00:00+0100", "clicks": 1}]}, "a date is not a moment"),
        ("referrers_by_domains", {"referrers_by_domain": [{"network": 1}]}, "a network is not a string"),
        ("referrers_by_domains", {"referrers_by_domain": [{"network": "a", "referrers": {}}]}, "no list of referrers"),
        ("clicks_summary", {"clicks": 3}, "clicks is not a count"),
    ],
    ids=range(21),
)
def test_what_has_no_metrics_is_no_answer_and_says_why(facet: str, body: dict[str, Any], why: str | None) -> None:
    if why is None:
        assert FACETS[facet].metrics_in(body) == []
    else:
        with pytest.raises(NotTheFacet) as refused:
            FACETS[facet].metrics_in(body)
        assert str(refused.value) == why


@pytest.mark.parametrize(
    ("facet", "body", "metrics"),
    [
        (
            "referrers",
            {"metrics": [{"value": "", "clicks": 0}, {"value": "a", "clicks": INT64_MAX}]},
            [{"value": "", "clicks": 0}, {"value": "a", "clicks": INT64_MAX}],
        ),
        (
            "referrers_by_domains",
            {
                "referrers_by_domain": [
                    {"network": "a", "referrers": [{"value": "x", "clicks": 1}, {"key": "y", "value": 2}]},
                    {"network": "b", "referrers": None},
                    {"network": "c", "referrers": [{"key": "k", "value": "z", "clicks": 3}]},
                ]
            },
            [
                {"network": "a", "value": "x", "clicks": 1},
                {"network": "a", "value": "y", "clicks": 2},
                {"network": "c", "value": "z", "clicks": 3},
            ],
        ),
        (
            "cities",
            {"metrics": [{"city": "Bonn", "country": None, "clicks": 1}]},
            [{"city": "Bonn", "subregion": None, "region": None, "country": None, "clicks": 1}],
        ),
        (
            "clicks",
            {"link_clicks": [{"date": "2026-11-23T01:30:00+0100", "clicks": 1}, {"date": "2026-11-24", "clicks": 2}]},
            [{"date": "2026-11-23T00:30:00Z", "clicks": 1}, {"date": "2026-11-24T00:00:00Z", "clicks": 2}],
        ),
        ("clicks_summary", {"total_clicks": 7}, [{"clicks": 7}]),
        (
            "engagements",
            {
                "engagements": [
                    {
                        "date": "2026-11-23T00:00:00+0000",
                        "engagement_count": 5,
                        "engagements": {"clicks": 2, "scans": 3},
                    }
                ]
            },
            [
                {
                    "date": "2026-11-23T00:00:00Z",
                    "engagement_count": 5,
                    "clicks": 2,
                    "scans": 3,
                    "lib_button_clicks": None,
                }
            ],
        ),
        (
            "engagements_summary",
            {"total_engagements": 5, "engagements": {"clicks": 2, "lib_button_clicks": 3}},
            [{"engagement_count": 5, "clicks": 2, "scans": None, "lib_button_clicks": 3}],
        ),
    ],
    ids=range(7),
)
def test_metrics_have_the_keys_of_the_facets_fields(
    facet: str, body: dict[str, Any], metrics: list[dict[str, Any]]
) -> None:
    assert FACETS[facet].metrics_in(body) == metrics
