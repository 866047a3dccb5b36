"""A spider of Scrapy that writes JSON lines."""

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess

PARAMETERS = "unit=day&units=-1&unit_reference=2026-11-23T06:00:00%2B0000&size=50"
list_path, base_url, out_path = sys.argv[1:4]


class Referrers(scrapy.Spider):  # type: ignore[misc]
    """Asks for the referrers of each link of a list."""

    name = "referrers"

    async def start(self) -> AsyncIterator[scrapy.Request]:
        """Yield a request for each link."""
        headers = {"Authorization": "Bearer benchmark"}
        with open(list_path, encoding="utf-8") as links:
            for line in links:
                link = line.strip()
                url = f"{base_url}/bitlinks/{link}/referrers?{PARAMETERS}"
                yield scrapy.Request(url, headers=headers, cb_kwargs={"link": link})

    def parse(self, response: Any, link: str) -> Iterator[dict[str, Any]]:
        """Yield a row."""
        yield {"bitlink": link, **response.json()}


process = CrawlerProcess(
    {
        "CONCURRENT_REQUESTS": 5,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 5,
        "DOWNLOAD_DELAY": 0,
        "FEEDS": {out_path: {"format": "jsonlines"}},
        "LOG_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
    }
)
process.crawl(Referrers)
process.start()
