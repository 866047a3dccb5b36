"""A plugin of pytest for `make mutants`: a mutant meets the tests of its package only, the quickest first."""

import gc
import json
import os
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


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let no collection of garbage look through what a mutant's process inherits: that takes half of its time."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Do so at the end, too, after conftest.py has undone it."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of other packages, and put the quickest first."""
    names = os.environ.get("MUTANT_UNDER_TEST", "").split(".")
    if names[0] != "harvester":
        return
    folders = tuple(f"tests/unit/{folder}/" for folder in _FOLDERS[names[1]])
    others = [item for item in items if not item.nodeid.startswith(folders)]
    config.hook.pytest_deselected(items=others)
    seconds = json.loads(Path("mutmut-stats.json").read_text())["duration_by_test"]
    items[:] = sorted(set(items) - set(others), key=lambda item: (seconds.get(item.nodeid, 0.0), item.nodeid))
