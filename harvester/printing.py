"""How a run stands, on standard output: once, at each change, or again and again in place."""

import os
import sys
from collections.abc import Callable, Iterator

import orjson

from harvester import tell
from harvester.glance import Glance
from harvester.terminal import as_json, escaped, print_out


def put_glance(seen: Glance, *, json: bool) -> None:
    """Print how a run stands."""
    print_out(_as_json(seen, orjson.OPT_INDENT_2) if json else tell.as_text(seen))


def follow(looks: Iterator[Glance], *, json: bool) -> None:
    """Print how a run stands, again and again: on a terminal in place, else a line at each change."""
    if json or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        _put_changes(looks, _as_json if json else tell.as_line)
    else:
        _redraw(looks)


def _as_json(seen: Glance, option: int = 0) -> str:
    return as_json(tell.as_dict(seen), option)


def _put_changes(looks: Iterator[Glance], shown: Callable[[Glance], str]) -> None:
    last = None
    for seen in looks:
        if (seen.manifest, seen.state) != last:
            print_out(shown(seen))
        last = (seen.manifest, seen.state)


def _redraw(looks: Iterator[Glance]) -> None:
    from rich.live import Live  # noqa: PLC0415 - a line for a log needs none of it
    from rich.text import Text  # noqa: PLC0415

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        for seen in looks:
            text = "\n".join(map(escaped, tell.as_text(seen).split("\n")))
            live.update(Text(text), refresh=True)
