"""Pictures: a Vega-Lite description of each, drawn as SVG by vl-convert, without a browser and without the network.

A picture is drawn twice, for a wide and for a narrow window; the report shows one of them. Texts take its colour. Every
other colour is one of COLOURS, which its style sheet replaces on a dark ground.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any, NamedTuple

from harvester.extras import import_vl_convert

COLOURS = ("#2f6db3", "#c9822b", "#b3453e", "#6c7a89")
"""Of the first series, the second, and so on. `report.css` names the same four."""
GRID = "#d5d9de"
WIDE, NARROW = 800, 288
"""Widths in pixels; the narrow one fits a window of 320."""
_LONGEST_LABEL = {WIDE: 300, NARROW: 110}
_FONT = 14
"""The size that room is made for. The style sheet has 12: fonts differ, and the reader's may be wider than the one that
is measured here."""
_LETTER = 8
"""Pixels that a letter of that size takes at most, on average."""
_BAR_HEIGHT, _NAMED_BAR_HEIGHT, _HEIGHT = 22, 40, 200
_FEW_MOMENTS = 12
"""Moments that have a tick each."""
_MOST_BARS = 62
"""More periods than these are drawn as an area."""
_TAG, _ROLE = re.compile("<[^>]*>"), re.compile(r' (?:role|aria-[a-z]+)="[^"]*"')
_HEAD = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)" viewBox="([^"]*)">')
_CONFIG = {
    "aria": False,  # the picture as a whole has a title and a description
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": GRID,
        "gridColor": GRID,
        "tickColor": GRID,
        "labelFontSize": _FONT,
        "titleFontSize": _FONT,
        "titleFontWeight": "normal",
        "labelPadding": 6,
    },
    "legend": {
        "labelColor": "currentColor",
        "labelFontSize": _FONT,
        "orient": "top",
        "title": None,
        "symbolType": "square",
    },
    "text": {"color": "currentColor", "fontSize": _FONT},
}

_TIME_AXIS = {
    "title": None,
    "grid": False,
    "labelOverlap": "greedy",
    "labelSeparation": 8,
    "format": {
        "year": "%Y",
        "quarter": "%b %d",
        "month": "%b %d",
        "week": "%b %d",
        "date": "%b %d",
        "hours": "%H:%M",
        "minutes": "%H:%M",
        "seconds": "%H:%M:%S",
    },
}


class Bar(NamedTuple):
    """A bar with its name, length, and the text at its end. rest: it stands for all others."""

    name: str
    value: int
    text: str
    rest: bool = False


class Point(NamedTuple):
    """A value of a series at a moment: UTC, `2026-11-22T00:00:00`."""

    moment: str
    value: float
    series: str = ""


class Picture(NamedTuple):
    """A picture in both widths, as SVG elements."""

    wide: str
    narrow: str


def bars(title: str, description: str, lines: Sequence[Bar]) -> Picture:
    """Draw horizontal bars, one below the other. In the narrow picture a name stands above its bar, not beside it."""
    values = [
        {"name": f"{n}\x1f{bar.name}", "value": bar.value, "text": bar.text, "rest": bar.rest}
        for n, bar in enumerate(lines)
    ]
    number = max(len(lines), 1)
    wide = _svg(title, description, _bars(values, lines, WIDE), WIDE, _BAR_HEIGHT * number)
    narrow = _svg(title, description, _bars(values, lines, NARROW), NARROW, _NAMED_BAR_HEIGHT * number)
    return Picture(wide, narrow)


def _bars(values: Sequence[dict[str, Any]], lines: Sequence[Bar], width: int) -> dict[str, Any]:
    above = width == NARROW
    name = "split(datum.value, '\x1f')[1]"
    axis = None if above else {"title": None, "ticks": False, "domain": False, "labelExpr": name}
    x = {"field": "value", "type": "quantitative", "axis": None, "scale": {"domain": [0, _end_of_axis(lines, width)]}}
    y = {"field": "name", "type": "nominal", "sort": None, "axis": axis}
    size: dict[str, Any] = {"height": 14, "yOffset": 8} if above else {"height": {"band": 0.68}}
    text = {"type": "text", "align": "left", "dx": 5, "dy": 8 if above else 0}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "bar", **size}, "encoding": {"color": _BAR_COLOUR}},
        {"mark": text, "encoding": {"text": {"field": "text"}}},
    ]
    if above:
        named = {"text": {"field": "shown"}, "x": {"value": 0}}
        mark = {"type": "text", "align": "left", "dy": -8, "limit": NARROW}
        shown = [{"calculate": "split(datum.name, '\x1f')[1]", "as": "shown"}]
        layers.append({"mark": mark, "encoding": named, "transform": shown})
    return {"data": {"values": values}, "encoding": {"x": x, "y": y}, "layer": layers}


_BAR_COLOUR = {"condition": {"test": "datum.rest", "value": COLOURS[3]}, "value": COLOURS[0]}


def _end_of_axis(lines: Sequence[Bar], width: int) -> float:
    """Return the value at the right edge: so much more than the longest bar's that its text has room behind it."""
    most = max((bar.value for bar in lines), default=0)
    label = min(max((len(bar.name) for bar in lines), default=0) * _LETTER, _LONGEST_LABEL[width])
    label = 0 if width == NARROW else label
    text = max((len(bar.text) for bar in lines), default=0) * _LETTER + _LETTER
    room = max(width - label, 2 * text)
    return max(most * room / (room - text), 1.0)


def over_time(title: str, description: str, points: Sequence[Point], unit: str) -> Picture:
    """Draw one series over time: a bar for each period, or an area where there are many. unit: day, week or month."""
    x: dict[str, Any] = {"field": "moment", "type": "temporal", "scale": {"type": "utc"}, "axis": _TIME_AXIS}
    mark: dict[str, Any] = {"type": "area", "color": COLOURS[0], "opacity": 0.85, "interpolate": "step-after"}
    if len(points) <= _MOST_BARS:
        mark = {"type": "bar", "color": COLOURS[0], "width": {"band": 0.8}}
        x |= {"timeUnit": _TIME_UNITS.get(unit, "utcyearmonthdatehoursminutes"), "bandPosition": 0}
    spec = {
        "data": {"values": [{"moment": point.moment, "value": point.value} for point in points]},
        "mark": mark,
        "encoding": {"x": x, "y": _amount("clicks")},
    }
    return _drawn(title, description, spec, _HEIGHT)


_TIME_UNITS = {"day": "utcyearmonthdate", "week": "utcyearmonthdate", "month": "utcyearmonth"}


class Overlay(NamedTuple):
    """What is drawn over series. limits: values of each limit, by its name, from a moment on, as broken lines.

    shaded: times that are shaded, each from a moment to another.
    """

    limits: Sequence[Point] = ()
    shaded: Sequence[tuple[str, str]] = ()


def stacked(
    title: str, description: str, points: Sequence[Point], names: Sequence[str], overlay: Overlay, axis: str
) -> Picture:
    """Draw several series over time upon each other. axis: its title.

    names: of all series, at most four: each has its colour, also where others have no points.
    """
    drawn = {point.series for point in points}
    colours = {name: colour for name, colour in zip(names, COLOURS, strict=False) if name in drawn}
    colour = {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": [*colours], "range": [*colours.values()]},
        "legend": {} if len(colours) > 1 else None,
    }
    moments = list(dict.fromkeys(point.moment for point in points))
    ticks: dict[str, Any] = {}
    if len(moments) <= _FEW_MOMENTS:  # else there would be seconds between them
        ticks = {"values": [1000 * int(datetime.fromisoformat(moment).timestamp()) for moment in moments]}
    x = {"field": "moment", "type": "temporal", "scale": {"type": "utc"}, "axis": _TIME_AXIS | ticks}
    area = {
        "data": {"values": [{**point._asdict(), "place": names.index(point.series)} for point in points]},
        "mark": {"type": "area", "interpolate": "step-after"},
        "encoding": {"x": x, "y": _amount(axis), "color": colour, "order": {"field": "place", "type": "quantitative"}},
    }
    line = {
        "data": {"values": [point._asdict() for point in overlay.limits]},
        "mark": {"type": "line", "interpolate": "step-after", "color": "currentColor", "strokeDash": [5, 4]},
        "encoding": {"x": x, "y": _amount(axis), "detail": {"field": "series"}},
    }
    band = {
        "data": {"values": [{"moment": start, "end": end} for start, end in overlay.shaded]},
        "mark": {"type": "rect", "color": COLOURS[2], "opacity": 0.22},
        "encoding": {"x": x, "x2": {"field": "end"}},
    }
    layers = [*([band] if overlay.shaded else []), area, *([line] if overlay.limits else [])]
    return _drawn(title, description, {"layer": layers}, _HEIGHT)


def pairs(title: str, description: str, points: Sequence[Point], names: Sequence[str]) -> Picture:
    """Draw shares, 0 to 1, of several series side by side. The moment of a point is the text below its group."""
    values = [{"group": point.moment, "value": point.value, "series": point.series} for point in points]
    order = list(dict.fromkeys(point.moment for point in points))
    colour = {"field": "series", "scale": {"domain": [*names], "range": [*COLOURS[: len(names)]]}, "legend": {}}
    y = {"title": None, "format": "~%", "tickCount": 4, "domain": False}

    def spec(width: int) -> dict[str, Any]:
        # Side by side the names would lie over each other on a phone.
        x = {"title": "clicks of a link", "labelAngle": -40 if width == NARROW else 0, "ticks": False}
        encoding = {
            "x": {"field": "group", "type": "nominal", "sort": order, "axis": x},
            "xOffset": {"field": "series", "sort": [*names]},
            "y": {"field": "value", "type": "quantitative", "axis": y},
            "color": colour,
        }
        return {"data": {"values": values}, "mark": "bar", "encoding": encoding}

    return Picture(*(_svg(title, description, spec(width), width, _HEIGHT) for width in (WIDE, NARROW)))


def _amount(title: str) -> dict[str, Any]:
    axis = {"title": title, "format": "~s", "tickCount": 4, "domain": False, "ticks": False}
    return {"field": "value", "type": "quantitative", "axis": axis}


def _drawn(title: str, description: str, spec: dict[str, Any], height: int) -> Picture:
    return Picture(*(_svg(title, description, spec, width, height) for width in (WIDE, NARROW)))


def _svg(title: str, description: str, spec: dict[str, Any], width: int, height: int) -> str:
    axis = _CONFIG["axis"] | {"labelLimit": _LONGEST_LABEL[width]}  # type: ignore[operator]
    legend = _CONFIG["legend"] | {"columns": 2 if width == NARROW else 4}  # type: ignore[operator]
    fit = {"type": "fit-x", "contains": "padding"}
    size = {
        "width": width,
        "height": height,
        "autosize": fit,
        "padding": {"left": 14, "right": 2, "top": 2, "bottom": 2},
        "config": {**_CONFIG, "axis": axis, "legend": legend},
    }
    svg: str = import_vl_convert("pictures need vl-convert").vegalite_to_svg({**spec, **size}, allowed_base_urls=[])
    head = _HEAD.match(svg)
    if head is None:
        raise ValueError(f"vl-convert has drawn something else than was expected: {svg[:200]}")
    named = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    tag = (
        f'<svg role="img" width="{head[1]}" height="{head[2]}" viewBox="{head[3]}" xmlns="http://www.w3.org/2000/svg">'
    )
    # Vega gives roles to parts of the picture; as one picture it has a title.
    drawing = _TAG.sub(lambda found: _ROLE.sub("", found[0]), svg[head.end() :])
    return tag + named + drawing
