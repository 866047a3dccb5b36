"""Imports go one way, and what is foreign stays in its room: docs/architecture.md is held against the code."""

import ast
import re
from pathlib import Path

import pytest

import harvester
from tests.commands import ROOT

PACKAGE = ROOT / "harvester"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


def table() -> dict[str, set[str]]:
    """Module to what it may import, from the table in docs/architecture.md."""
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    known = {name for name, _ in rows}
    return {name: known if may == "all" else set(may.replace("–", "").replace(",", "").split()) for name, may in rows}


def imports(module: str) -> set[str]:
    """The modules, ours by their bare name, that a module imports anywhere in it, but not for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "harvester":
            found |= {f"harvester.{alias.name}" for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.removeprefix("harvester.").partition(".")[0] for name in found}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    assert imports(module) & set(MODULES) <= table()[module]


def test_the_table_goes_downwards() -> None:
    order = list(table())
    assert sorted(order) == MODULES
    for module, may in table().items():
        if module != "cli":
            assert all(order.index(other) < order.index(module) for other in may), module


def test_no_module_takes_the_name_of_what_the_package_offers() -> None:
    assert not set(harvester.__all__) & set(MODULES)


@pytest.mark.parametrize(
    ("foreign", "rooms"),
    [
        ("aiohttp", {"connections", "sending", "loopback", "sandbox", "sandbox_oauth"}),
        ("aiolimiter", {"pace"}),
        ("tenacity", {"retries", "stores"}),
        ("obstore", {"stores"}),
        ("sqlite3", {"ledger", "book"}),
        ("cyclopts", {"cli", "options", "configuration"}),
        ("psutil", {"places"}),
        ("platformdirs", {"places", "vault"}),
        ("keyring", {"vault"}),
        ("pyarrow", {"contents", "parquet", "parts", "reading"}),
        ("backports", {"contents", "lines", "parts"}),
        ("csv", {"columns"}),
        ("rich", {"display", "printing", "show"}),
        ("structlog", {"log"}),
        ("prometheus_client", {"metrics_file"}),
    ],
)
def test_foreign_packages_stay_in_their_rooms(foreign: str, rooms: set[str]) -> None:
    assert {module for module in MODULES if foreign in imports(module)} == rooms


@pytest.mark.parametrize(
    ("word", "rooms"),
    [
        (r"\b(?:os\.)?(?:fsync|rename)\(", {"journal", "dataset"}),
        (r"(?<!\.)\bprint\(", {"cli", "demo", "show", "terminal"}),
        (r"\bsys\.exit\(|\b_exit\(", {"cli", "signals"}),
        (r"\bSELECT |\bINSERT |\bUPDATE .* SET", {"ledger", "book", "scope", "months"}),
    ],
)
def test_side_effects_stay_in_their_rooms(word: str, rooms: set[str]) -> None:
    assert {module for module in MODULES if re.search(word, Path(PACKAGE / f"{module}.py").read_text())} == rooms
