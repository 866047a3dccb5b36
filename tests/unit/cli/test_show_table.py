"""A row in a pipe has the same bytes, whether rich has drawn it or not."""

import json
import sys
from typing import Any

import pytest

from harvester.cli import show

ROW: dict[str, Any] = {
    "bitlink": "bit.ly/x",
    "facet": "referrers",
    "unit": "day",
    "units": -1,
    "units_returned": 30,
    "unit_reference": "2026-11-23T06:00:00Z",
    "size": 50,
    "truncated": False,
    "clicks_listed": 6256,
    "period_start": None,
    "metrics": [
        {"value": "direct", "clicks": 4711},
        {"value": "https://t.co/", "clicks": 1204},
        {"value": "X (Formerly Twitter)", "clicks": 3},
        {"value": "nobody", "clicks": None},
    ],
}
ROWS = {
    "plain": ROW,
    "a single metric": ROW | {"metrics": ROW["metrics"][:1], "clicks_listed": 4711},
    "no clicks at all": ROW | {"metrics": [{"value": "a", "clicks": 0}], "clicks_listed": 0},
    "with remarks": ROW | {"truncated": True, "units": 90},
    "another facet": ROW | {"facet": "referrer_name"},
    "many clicks": ROW | {"metrics": [{"value": "[b]x[/b] :a:", "clicks": 10**12}], "clicks_listed": 10**12},
    "as wide as a pipe": ROW | {"metrics": [{"value": "y" * 32, "clicks": 4711}]},
}
DRAWN = {
    "too wide": ROW | {"metrics": [{"value": "y" * 33, "clicks": 4711}]},
    "nothing": ROW | {"metrics": []},
    "wide letters": ROW | {"metrics": [{"value": "日本", "clicks": 1}]},
    "a line feed": ROW | {"metrics": [{"value": "a\nb", "clicks": 1}]},
    "a long heading": ROW | {"bitlink": "bit.ly/" + "z" * 90},
}


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.isatty", lambda _: False)
    monkeypatch.setattr("rich.console._STD_STREAMS", ())


def printed(row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show._print_table(json.dumps(row).encode())
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_is_written_as_rich_draws_it(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rich.console", None)
        plain = printed(ROWS[kind], capsys)
    monkeypatch.setattr(show, "_plain_text", lambda *_: None)
    assert plain == printed(ROWS[kind], capsys)


@pytest.mark.parametrize("kind", DRAWN)
def test_what_takes_rich_is_drawn_by_it(kind: str) -> None:
    row = DRAWN[kind]
    head, body = show._cells(row, 80)
    assert show._plain_text(f"{row['bitlink']}: clicks", head, body, show._remarks(row)) is None


@pytest.mark.parametrize("name", ["COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_variable_that_rich_follows_has_it_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not show._width_varies()
    monkeypatch.setenv(name, "1")
    assert show._width_varies()
