"""Pictures: what is drawn where only some series or few moments are there."""

import re

from harvester.reports import charts
from harvester.reports.charts import COLOURS, Bar, Overlay, Point

NAMES = ("answers", "throttled", "errors", "other")
MOMENTS = ("2026-11-23T05:50:00+00:00", "2026-11-23T05:51:00+00:00", "2026-11-23T05:52:00+00:00")


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_series_has_its_own_colour_where_others_have_no_points() -> None:
    points = [Point(moment, 5, name) for moment in MOMENTS for name in ("answers", "other")]
    for svg in charts.stacked("t", "d", points, NAMES, Overlay(), "requests"):
        assert f'fill="{COLOURS[0]}"' in svg
        assert f'fill="{COLOURS[3]}"' in svg
        assert f'fill="{COLOURS[2]}"' not in svg


def test_few_minutes_have_a_tick_each_and_none_between_them() -> None:
    points = [Point(moment, 5, "answers") for moment in MOMENTS]
    for svg in charts.stacked("t", "d", points, NAMES, Overlay(), "requests"):
        assert [text for text in texts(svg) if ":" in text] == ["05:50", "05:51", "05:52"]


def test_outages_are_shaded_behind_the_series() -> None:
    points = [Point(moment, 5, "answers") for moment in MOMENTS]
    overlay = Overlay(shaded=[(MOMENTS[0], MOMENTS[1])])
    for svg in charts.stacked("t", "d", points, NAMES, overlay, "requests"):
        assert svg.index(f'fill="{COLOURS[2]}"') < svg.index(f'fill="{COLOURS[0]}"')


def test_a_narrow_picture_has_its_names_above_the_bars_where_they_are_not_cut() -> None:
    name = "the server to answer again"
    wide, narrow = charts.bars("t", "d", [Bar(name, 5, "5 s"), Bar("b", 2, "2 s")])
    assert name in texts(wide)
    assert name in texts(narrow)
    assert 'height="84"' in narrow[:200]
