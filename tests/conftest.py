"""What the tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from harvester.sandbox import Sandbox, SandboxOptions, serving
from tests.servers import in_thread


class Served(NamedTuple):
    """A sandbox that is being served. url: its base URL."""

    url: str
    sandbox: Sandbox


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serve a sandbox without limits, errors or latency, but for the options given."""
    with ExitStack() as stack:

        def start(**options: Any) -> Served:
            calm = {"per_minute": 0, "per_hour": 0, "per_month": 0, "latency_ms": 0, "errors": 0.0}
            sandbox = Sandbox(SandboxOptions(**{**calm, **options}))
            return Served(stack.enter_context(in_thread(serving(sandbox))), sandbox)

        yield start
