"""A group whose pages the test writes: what each cursor is answered with, one answer after another."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

from tests.support.servers import in_thread

Answer = tuple[int, Any]


def page(names: Sequence[str], following: str = "") -> Answer:
    """A page of the links `bit.ly/NAME`. following: the cursor of the next one."""
    links = [{"id": f"bit.ly/{name}", "link": f"https://bit.ly/{name}"} for name in names]
    after = f"https://example.com/?search_after={following}" if following else ""
    return 200, {"links": links, "pagination": {"next": after, "search_after": following, "size": 100}}


class PagedGroup:
    """Answers the pages of group G by their cursors; a cursor's last answer is repeated. asked: cursors, in order.

    url: the server's base URL.
    """

    def __init__(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.url = ""
        self._times: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/v4/groups/G/bitlinks", request.path
        assert request.query["size"] == "100"
        cursor = request.query.get("search_after", "")
        answers = self.answers[cursor]
        status, body = answers[min(self._times[cursor], len(answers) - 1)]
        self._times[cursor] += 1
        self.asked.append(cursor)
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, content_type="application/json")


@contextmanager
def paged(answers: Mapping[str, Sequence[Answer]]) -> Iterator[PagedGroup]:
    """Serve a group's pages on loopback."""
    group = PagedGroup(answers)

    @asynccontextmanager
    async def serving() -> AsyncIterator[PagedGroup]:
        app = web.Application()
        app.router.add_get("/{path:.*}", group.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            group.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v4"
            yield group
        finally:
            await runner.cleanup()

    with in_thread(serving()) as served:
        yield served
