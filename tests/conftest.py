"""What the tests share."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harvester.sandbox import Sandbox, SandboxOptions, serving
from tests.servers import in_thread


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder in memory where there is one: for tests that sync files thousands of times."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2**30:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="harvester-", dir=memory))
    yield folder
    shutil.rmtree(folder)


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
