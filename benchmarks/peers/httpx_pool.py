"""Five tasks that share an asynchronous client of httpx."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import TextIO

import httpx

PARAMETERS = {"unit": "day", "units": "-1", "unit_reference": "2026-11-23T06:00:00+0000", "size": "50"}
WORKERS = 5


async def work(links: Iterator[str], base_url: str, client: httpx.AsyncClient, out: TextIO) -> None:
    """Ask for link after link, and write what comes back."""
    for line in links:
        link = line.strip()
        response = await client.get(f"{base_url}/bitlinks/{link}/referrers", params=PARAMETERS)
        response.raise_for_status()
        out.write(json.dumps({"bitlink": link, **response.json()}) + "\n")


async def pool(list_path: str, base_url: str, out_path: str) -> None:
    """Ask for all links of a list."""
    headers, limits = {"Authorization": "Bearer benchmark"}, httpx.Limits(max_connections=WORKERS)
    with open(list_path, encoding="utf-8") as links, open(out_path, "w", encoding="utf-8") as out:
        async with httpx.AsyncClient(headers=headers, limits=limits) as client:
            await asyncio.gather(*(work(links, base_url, client, out) for _ in range(WORKERS)))


asyncio.run(pool(*sys.argv[1:4]))
