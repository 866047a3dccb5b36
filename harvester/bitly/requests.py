"""What a client sends for a name, and how it reads the answer: a bitlink's facet here, a page of links in `groups`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, check_echo, endpoint_of, path
from harvester.bitly.verdicts import Verdict, classify


class Requests(Protocol):
    """The requests of one endpoint, which has limits of its own.

    body: returns the JSON that is posted for a name; None where a request is a GET.
    """

    @property
    def endpoint(self) -> str:
        """The path template by which Bitly names the endpoint."""

    @property
    def body(self) -> Callable[[str], bytes] | None:
        """See the class."""

    def target(self, name: str) -> tuple[str, str]:
        """Return the path below the base URL, and the query string, that ask for a name; both encoded."""

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, *, whole: bool) -> Verdict:
        """Return the verdict on a response. whole: False if the body was cut off."""


class FacetRequests:
    """The requests of a query, one for each bitlink."""

    body = None

    def __init__(self, query: Query) -> None:
        self._check_echo = partial(check_echo, query)
        self._facet = FACETS[query.facet]
        self._parameters = query.parameters
        self.endpoint = endpoint_of(self._facet)

    def target(self, name: str) -> tuple[str, str]:
        """Return path and query string for a bitlink."""
        return path(name, self._facet), self._parameters

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, *, whole: bool) -> Verdict:
        """Return the verdict on a response to a call."""
        return classify(status, headers, body, self._facet, check_echo=self._check_echo, whole=whole)
