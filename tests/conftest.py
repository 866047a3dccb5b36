"""What the tests share."""

import atexit
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest
import trustme

# Each worker would otherwise rewrite the assertions of every file and compile it anew: 8 s of its CPU time.
sys.dont_write_bytecode = False

# ruff: noqa: E402 - what follows is compiled too
from harvester.sandbox import Sandbox, SandboxOptions, serving
from tests.support.commands import STATE_DIR, TOKEN_STORE, close_command_server
from tests.support.remembered_signatures import remember_signatures
from tests.support.servers import in_thread

if TYPE_CHECKING:
    from tests.support.redis_server import RedisProcess
    from tests.support.s3_server import S3, Case

# An example takes as long as the other workers let it; what may take how long is measured in benchmarks/.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=50)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=500)
hypothesis.settings.load_profile("suite")

# What the collection makes lives to the end: looking through it again and again takes each worker a second and more.
gc.disable()

remember_signatures()  # for the commands that run in the test's own process

_MEMORY = Path("/dev/shm")
_NUMBERS = count()


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Make a temporary folder, in memory where there is some: for what is synced thousands of times."""
    has_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= 2**30
    with tempfile.TemporaryDirectory(prefix="harvester-", dir=_MEMORY if has_memory else None) as folder:
        yield Path(folder)


def pytest_configure(config: pytest.Config) -> None:
    """Let a worker leave without the interpreter's end, which takes it 2 s and more: everything has been reported.

    What is registered first is called last.
    """
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)


def pytest_collection(session: pytest.Session) -> None:
    """Let the workers of a new clone compile a share of the test files each: every worker begins at another place."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    tests = Path(__file__).parent
    files = sorted(tests.rglob("test_*.py"))
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[begin:] + files[:begin]:
        with suppress(Exception):  # the collection itself will show it
            importlib.import_module(".".join(file.relative_to(tests.parent).with_suffix("").parts))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what is slow first, an equal share of it into the first tests of each worker.

    At first xdist gives each of N workers an Nth of a quarter of the tests, in their order.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    first = len(items) // workers // 4
    slow = [item for item in items if item.get_closest_marker("slow")]
    rest = iter([item for item in items if not item.get_closest_marker("slow")])
    shares = [slow[number::workers] for number in range(workers)]
    items[:] = [item for share in shares for item in [*share, *islice(rest, max(0, first - len(share)))]]
    items.extend(rest)


def pytest_collection_finish() -> None:
    """Let no collection of garbage look through modules and tests from here on."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter's end find everything again: some modules say what they miss."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the harvests in virtual time came to."""
    passed = [report for report in terminalreporter.stats.get("passed", []) if "simulation/" in report.nodeid]
    lines = [line for report in passed for line in report.capstdout.splitlines() if line]
    if lines:
        terminalreporter.section("weeks in virtual time")
        terminalreporter.write("\n".join([*sorted(lines), ""]))


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A temporary folder for tests that sync files thousands of times."""
    with quick_folder() as folder:
        yield folder


@pytest.fixture(scope="session", autouse=True)
def own_signals() -> Iterator[None]:
    """Hear signals in what these tests start, even if a background job or nohup has them ignored: that is inherited."""
    ignored = [
        each for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM) if signal.getsignal(each) is signal.SIG_IGN
    ]
    for each in ignored:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def own_state() -> Iterator[Path]:
    """Keep these tests, and the commands that they start, away from the user's budget, tokens and configuration."""
    with quick_folder() as folder:
        os.environ[STATE_DIR] = str(folder / "shared")
        os.environ[TOKEN_STORE] = str(folder / "tokens")
        os.environ["XDG_CONFIG_HOME"] = str(folder / "configuration")
        os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
        yield folder
        close_command_server()
        for name in (STATE_DIR, TOKEN_STORE, "XDG_CONFIG_HOME", "PYTHON_KEYRING_BACKEND"):
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def authority(own_state: Path) -> Iterator[trustme.CA]:
    """Let commands trust this authority and not all of the machine's: reading those is a tenth of a command's start."""
    authority = trustme.CA()
    with pytest.MonkeyPatch.context() as patch:
        authority.cert_pem.write_to_path(str(own_state / "authority.pem"))
        patch.setenv("SSL_CERT_FILE", str(own_state / "authority.pem"))
        patch.setenv("SSL_CERT_DIR", str(own_state / "no-authorities"))
        yield authority


@pytest.fixture(autouse=True)
def new_state(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin without a budget: a budget belongs to a server's port, and ports come again."""
    number = next(_NUMBERS)
    monkeypatch.setenv(STATE_DIR, str(own_state / str(number)))
    monkeypatch.setenv(TOKEN_STORE, str(own_state / f"tokens-{number}"))


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


@pytest.fixture(scope="session")
def s3_server() -> "Iterator[S3]":
    """Serve an S3 once for all tests."""
    from tests.support.s3_server import serving_s3  # noqa: PLC0415 - a second that most files need not wait for

    with serving_s3() as s3:
        yield s3


@pytest.fixture
def case(s3_server: "S3", quick_path: Path, serve: Callable[..., Served]) -> "Iterator[Case]":
    """A prefix of its own, in an S3 without faults."""
    from tests.support.s3_server import Case  # noqa: PLC0415

    s3_server.calm()
    yield Case(s3_server, quick_path, serve())
    s3_server.calm()


@pytest.fixture(scope="session")
def redis_server() -> "Iterator[RedisProcess]":
    """A Redis for all tests of a worker, which use prefixes of their own; skipped where there is no server."""
    from tests.support.redis_server import running_redis  # noqa: PLC0415 - an extra

    with running_redis() as server:
        yield server
