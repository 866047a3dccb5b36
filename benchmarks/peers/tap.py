"""tap-bitly, a Singer tap: its stream of daily clicks. It has none of referrers, and its links come from the list."""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from tap_bitly.client import BitlyStream
from tap_bitly.streams import Bitlinks, DailyBitlinkClicks
from tap_bitly.tap import TapBitly

list_path, base_url, out_path = sys.argv[1:4]


def listed(_: Bitlinks, __: Any) -> Iterator[dict[str, str]]:
    """Yield the links of the list, as if the group had them."""
    with open(list_path, encoding="utf-8") as links:
        yield from ({"id": line.strip()} for line in links)


class Tap(TapBitly):  # type: ignore[misc]
    """The tap with the two streams that the job needs."""

    def discover_streams(self) -> list[Any]:
        """Return them."""
        return [Bitlinks(self), DailyBitlinkClicks(self)]


BitlyStream.url_base = base_url.removesuffix("/v4")
Bitlinks.parent_stream_type = None
Bitlinks.get_records = listed
with open(out_path, "w", encoding="utf-8") as out, redirect_stdout(out):
    Tap(config={"token": "benchmark"}).sync_all()
