"""Reads the groups of an account and the pages of their links, each page once, and stops as a run does."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

from harvester.bitly.groups import (
    PAGE_SIZE,
    USER,
    Group,
    GroupLink,
    NoLink,
    ObjectRequests,
    Page,
    PageRequests,
    page_name,
    read_default_group,
    read_groups,
)
from harvester.bitly.query import GROUPS
from harvester.bitly.requests import Requests
from harvester.bitly.verdicts import (
    Document,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    TokenRefused,
    Unknown,
    Verdict,
    reason,
)
from harvester.client.client import Client
from harvester.clock import utc_iso, utc_text
from harvester.errors import RunStopped, RunStopping
from harvester.events import Event, RunObserver
from harvester.groups.journal import ListRequest, PageJournal
from harvester.groups.spool import Spooled, spooled
from harvester.progress import limit_in_words
from harvester.shutdown import ShutdownSignal, Stop, StopReason, month_spent, token_refused

OpenClient: TypeAlias = Callable[[Requests], AbstractAsyncContextManager[Client]]
"""Opens a client for the requests of one endpoint, counted in that endpoint's budget; one at a time."""
OnPage: TypeAlias = Callable[[list[GroupLink], list[NoLink]], None]

_REPORT_SECONDS = 10.0
_TELL_SECONDS = 2.0
"""A request that has waited this long says what for."""
_GRACE_SECONDS = 5.0
"""How long a request in flight is waited for once the run is to stop."""


class AccountReader:
    """Asks Bitly for an account's groups and their links, one request after another.

    Where a request gets no good answer, the reason to stop is requested and RunStopping raised. next_begins: as in
    budget.Month.
    """

    def __init__(
        self,
        open_client: OpenClient,
        next_begins: Callable[[], datetime],
        shutdown: ShutdownSignal,
        observer: RunObserver,
    ) -> None:
        self._open_client = open_client
        self._next_begins = next_begins
        self._shutdown = shutdown
        self._observer = observer
        self._before: list[str] | None = None

    async def groups(self) -> list[Group]:
        """Return the account's groups.

        Raises:
            RunStopping: there was no good answer, or the run ended first.
        """
        async with self._open_client(ObjectRequests(GROUPS, read_groups)) as client:
            groups: list[Group] = await self._content(client, GROUPS, "the account's groups")
        return groups

    async def default_group(self) -> str:
        """Return the guid of the user's default group; an empty text if Bitly does not tell it.

        Raises:
            RunStopping: the month is spent, the token is refused, or the run ended first.
        """
        async with self._open_client(ObjectRequests(USER, read_default_group)) as client:
            verdict = await self._verdict(client, USER)
        if isinstance(verdict, Document):
            return str(verdict.content)
        if isinstance(verdict, MonthSpent | TokenRefused):
            self._shutdown.request(stop_for(verdict, "the default group", self._next_begins))
            raise RunStopping
        self._observer.warn(f"Bitly did not name the default group ({reason(verdict)})")
        return ""

    async def complete(self, journal: PageJournal, request: ListRequest, on_page: OnPage = lambda _, __: None) -> None:
        """Read the pages that a journal lacks. on_page: called with the links of each, once it is durable.

        Raises:
            RunStopping: as `groups`; what was read is in the journal. OutputError: the journal cannot be written.
        """
        if journal.state.ended is not None:
            return
        if journal.state.groups is None:
            journal.add_groups(list(request.groups) or await self._active_groups())
        groups, reported = journal.state.groups or [], time.monotonic()
        async with self._open_client(PageRequests(request.filters)) as client:
            for guid in groups:
                self._before = None
                while (cursor := journal.state.cursors.get(guid, "")) is not None:
                    page: Page = await self._content(client, page_name(guid, cursor), f"the links of group {guid}")
                    self._keep(journal, guid, cursor, page)
                    on_page([link._replace(group=guid) for link in page.links], page.bad)
                    if time.monotonic() - reported > _REPORT_SECONDS:
                        reported = time.monotonic()
                        text = f"reading the groups' links: {journal.state.words} so far"
                        self._observer.note(text, Event.LIST_READING, lines=journal.state.links)
                    if self._shutdown.stop is not None:
                        raise RunStopping
        journal.end(utc_iso(datetime.now(UTC)))

    async def _active_groups(self) -> list[str]:
        groups = await self.groups()
        left_out = [group.guid for group in groups if group.active is False]
        if left_out:
            self._observer.warn(f"not active, and left out: group {', '.join(left_out)}")
        return [group.guid for group in groups if group.active is not False]

    def _keep(self, journal: PageJournal, guid: str, cursor: str, page: Page) -> None:
        """Record a page. Its group ends with it if its cursor leads back to a page that was read, or if it has no other
        links than the page before: a server that ignores cursors would have the month spent on one page.
        """
        ids, so_far = [link.id for link in page.links], f"{journal.state.links + len(page.links):,} so far"
        before = cursor and page.following in journal.state.seen  # of the same group only
        if page.following is not None and (before or page.following == cursor):
            if page.found >= PAGE_SIZE:
                self._observer.warn(
                    f"group {guid}: a full page names a cursor that was followed before, so its links end there "
                    f"({so_far}); there may be more"
                )
            page = page._replace(following=None)
        elif page.following is not None and ids == self._before:
            self._observer.warn(
                f"group {guid}: a page has no other links than the one before it, so its links end there ({so_far}); "
                "there may be more"
            )
            page = page._replace(following=None)
        self._before = ids
        journal.add_page(guid, cursor, page)

    async def _content(self, client: Client, name: str, what: str) -> Any:
        """Ask for a name and return its document's content."""
        verdict = await self._verdict(client, name)
        if isinstance(verdict, Document):
            return verdict.content
        self._shutdown.request(stop_for(verdict, what, self._next_begins))
        raise RunStopping

    async def _verdict(self, client: Client, name: str) -> Verdict:
        """Ask for a name; raise RunStopping if the answer takes too long once the run is to stop."""
        asking, requested = asyncio.create_task(client.verdict_on(name)), asyncio.create_task(self._shutdown.wait())
        told = ""
        try:
            while not (asking.done() or requested.done()):
                await asyncio.wait({asking, requested}, timeout=_TELL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done() and (why := _why_nothing_comes(client)) not in {"", told}:
                    told = why
                    self._observer.note(why)
            if not asking.done():
                await asyncio.wait({asking}, timeout=_GRACE_SECONDS)
            if not asking.done():
                raise RunStopping
            return asking.result()
        finally:
            requested.cancel()
            asking.cancel()
            await asyncio.wait({asking})


def _why_nothing_comes(client: Client) -> str:
    """Return what a request waits for, in words; an empty text if for nothing but its answer."""
    waiting, trouble = client.sender.waiting, client.sender.trouble
    if waiting is not None:
        until = f" (until {utc_text(waiting.until, round_up=True)})" if waiting.until else ""
        return f"waiting for {limit_in_words(waiting.window, waiting.limit)}{until}"
    return f"no good answer yet ({trouble}); retrying" if trouble else ""


def stopped(shutdown: ShutdownSignal) -> RunStopped:
    """Return the error for a RunStopping that nobody makes an outcome of."""
    assert shutdown.stop is not None
    return RunStopped(shutdown.stop.reason, shutdown.stop.message, shutdown.stop.until)


def stop_for(verdict: Verdict, what: str, next_begins: Callable[[], datetime]) -> Stop:
    """Return the stop for a verdict that is no Document. what: was asked for, in words."""
    match verdict:
        case MonthSpent():
            return month_spent(reason(verdict), next_begins())
        case TokenRefused():
            return token_refused(reason(verdict))
        case PlanRefused():
            return Stop(StopReason.PLAN_REFUSED, f"the account's plan does not include {what} ({reason(verdict)})")
        case Refused(status=403):
            return Stop(
                StopReason.TOKEN_REFUSED,
                f"{what}: this token may not see them ({reason(verdict)}); `harvester groups` lists its groups",
            )
        case Refused(no_route=True):
            return Stop(
                StopReason.NO_ROUTE,
                f"{what}: the server does not know the path ({reason(verdict)}). Check --base-url (Bitly's ends in "
                "/v4)",
            )
        case Refused():
            return Stop(
                StopReason.INPUT,
                f"{what}: no such group ({reason(verdict)}); `harvester groups` lists the account's",
            )
        case ParameterRefused() | Unknown(status=400):
            return Stop(
                StopReason.PARAMETER_REFUSED,
                f"{what}: Bitly refused a filter, or the cursor of a page ({reason(verdict)}). Correct the filter; if "
                "a cursor has expired since, list anew with a new --out",
            )
        case _:
            return Stop(StopReason.OUTAGE, f"{what}: no good answer ({reason(verdict)}); run it again later")


class GroupClients(Protocol):
    """Opens clients for the routes of groups. sent: the requests of all of them."""

    sent: int

    @property
    def next_begins(self) -> Callable[[], datetime]:
        """As in budget.Month."""

    def open(self, requests: Requests) -> AbstractAsyncContextManager[Client]:
        """Open a client for the requests of one endpoint."""


async def list_groups(
    listed: ListRequest,
    folder: str,
    clients: GroupClients,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    outputs: Sequence[str] = (),
) -> Spooled:
    """Read the links of groups into a folder, unless they were read before. outputs: as in `spooled`. Raises as it."""
    reader = AccountReader(clients.open, clients.next_begins, shutdown, observer)
    found = await spooled(folder, listed, reader.complete, outputs)
    state = found.state
    when = "read now" if clients.sent or state.ended is None else f"read before, at {utc_text(state.ended)}"
    text = f"{listed.words}: {state.words}, {when}"
    observer.note(text, Event.LIST_READING, lines=state.links)
    return found
