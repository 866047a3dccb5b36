"""A plugin of pytest for `make mutants`: a mutant meets the quick tests of its package only, the quickest first."""

import gc
import json
import os
import resource
from pathlib import Path

import hypothesis
import pytest

# Every mutant meets the same examples, and the first that fails is enough.
hypothesis.settings.register_profile(
    "mutation",
    deadline=None,
    max_examples=30,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)

_FOLDERS = {"bitly": ("bitly", "client"), "budget": ("budget", "client", "run"), "dataset": ("dataset", "run")}
"""Whose unit tests know a package well, by the package's name."""
_LONGEST_TEST_SECONDS = 1.0
_CPU_SECONDS = 30
"""What a mutant may use: one that never ends is killed by SIGXCPU. A busy machine takes nothing from it."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let no collection of garbage look through what a mutant's process inherits: that takes half of its time."""
    gc.freeze()
    if _package():
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Do so at the end, too, after conftest.py has undone it."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of other packages and slow ones, and put the quickest first."""
    if not (package := _package()):
        return
    times = json.loads(Path("mutmut-stats.json").read_text(encoding="utf-8"))["duration_by_test"]
    seconds = {item: times.get(item.nodeid, 0.0) for item in items}
    folders = tuple(f"tests/unit/{folder}/" for folder in _FOLDERS[package])
    chosen = [item for item in items if item.nodeid.startswith(folders) and seconds[item] <= _LONGEST_TEST_SECONDS]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted(chosen, key=lambda item: (seconds[item], item.nodeid))


def _package() -> str:
    """Return the package of the mutant that is under test; empty while mutmut tries the tests without one."""
    names = os.environ.get("MUTANT_UNDER_TEST", "").split(".")
    return names[1] if names[0] == "harvester" else ""
