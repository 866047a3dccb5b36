"""What anybody writes in half an hour, and what harvester's cost is held against: five workers, GET, NDJSON.

No limits, no retries, no duplicates, no resuming, no check of what came back.
usage: python -m benchmarks.bare_pool LIST BASE_URL OUT
"""

import asyncio
import sys
from collections.abc import Iterator
from typing import BinaryIO

import aiohttp
import orjson

from harvester import __version__

WORKERS = 5
_PARAMETERS = "unit=day&units=-1&unit_reference=2026-11-23T06:00:00%2B0000&size=50"
_HEADERS = {  # those that harvester sends
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "Authorization": "Bearer benchmark",
    "User-Agent": f"harvester/{__version__}",
}


async def work(links: Iterator[str], base_url: str, session: aiohttp.ClientSession, out: BinaryIO) -> None:
    """Ask for link after link, and write what comes back."""
    for line in links:
        link = line.strip()
        async with session.get(f"{base_url}/bitlinks/{link}/referrers?{_PARAMETERS}") as response:
            answer = orjson.loads(await response.read())
        out.write(orjson.dumps({"bitlink": link, **answer}) + b"\n")


async def pool(path: str, base_url: str, out_path: str) -> None:
    """Ask for all links of a list."""
    with open(path, encoding="utf-8") as links, open(out_path, "wb") as out:
        async with aiohttp.ClientSession(headers=_HEADERS) as session:
            await asyncio.gather(*(work(links, base_url, session, out) for _ in range(WORKERS)))


if __name__ == "__main__":
    asyncio.run(pool(*sys.argv[1:4]))
