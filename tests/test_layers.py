"""Imports go one way, and what is foreign stays in its room: docs/architecture.md is held against the code."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import harvester
from tests.support.commands import ROOT

PACKAGE = ROOT / "harvester"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_MODULES, MOST_LINES, MOST_FLOORS = 9, 400, 9
ANYTHING = {"cli", "api", "arrow", "lookup", "spark", "__init__", "__main__"}
"""What stands beside or above the packages, and may import all of them."""


def name_of(path: Path) -> str:
    """A module's name within the package: `run.harvest`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(module: str) -> str:
    return module.partition(".")[0]


def table() -> dict[str, set[str]]:
    """Package to the packages that it may import, from the table in docs/architecture.md."""
    rows = re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)/`", may)) for name, may in rows}


def ground() -> set[str]:
    """The modules that everybody may import, from the line in docs/architecture.md that begins with their storey."""
    (line,) = re.findall(r"^Storey 0 .*: (.*)\.$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", line))


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules, ours by their names within the package, that a file imports anywhere, also for its types alone."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    known = {name_of(each) for each in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = node.module.removeprefix("harvester").removeprefix(".")
            within = node.module.partition(".")[0] == "harvester"
            for alias in node.names if within else ():
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in known else module or "__init__"
            if not within:
                yield node.module


@cache
def edges() -> dict[str, set[str]]:
    """Module to our modules that it imports."""
    known = {name_of(path) for path in FILES}
    return {name_of(path): {each for each in imported(path) if each in known} for path in FILES}


@pytest.mark.parametrize("package", sorted({room(name_of(path)) for path in FILES} - ANYTHING))
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    may = ground() if package in ground() else table()[package] | ground() | {package}
    wrong = {
        f"{module} imports {other}"
        for module, others in edges().items()
        if room(module) == package
        for other in others
        if room(other) not in may
    }
    assert not wrong


def test_the_table_has_every_package_and_goes_downwards() -> None:
    order = list(table())
    assert sorted(order) == sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
    for package, may in table().items():
        assert package == "cli" or all(order.index(other) < order.index(package) for other in may), package


def floors() -> dict[str, int]:
    """Module to its floor: 1 for one that imports none of ours, else one more than the highest that it imports."""
    found: dict[str, int] = {}

    def floor(module: str, above: tuple[str, ...]) -> int:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in found:
            found[module] = 1 + max((floor(each, (*above, module)) for each in edges()[module]), default=0)
        return found[module]

    for module in edges():
        floor(module, ())
    return found


def test_there_is_no_circle_and_the_house_is_not_too_high() -> None:
    assert 1 < max(floors().values()) <= MOST_FLOORS


def test_no_package_is_crowded_and_no_module_long() -> None:
    rooms = {path.parent for path in FILES} - {PACKAGE}
    crowded = {str(each): count for each in rooms if (count := len([*each.glob("[!_]*.py")])) > MOST_MODULES}
    long = {str(path): lines for path in FILES if (lines := path.read_text().count("\n")) > MOST_LINES}
    assert (crowded, long) == ({}, {})


def test_no_module_takes_the_name_of_what_the_package_offers() -> None:
    assert not set(harvester.__all__) & {room(name_of(path)) for path in FILES}


@pytest.mark.parametrize(
    ("foreign", "rooms"),
    [
        (
            "aiohttp",
            {"cli.login", "client.attempt", "client.counting", "sandbox.groups", "sandbox.server"}
            | {"transport.connection", "transport.connection_errors", "transport.direct", "transport.exchange"}
            | {"transport.http", "transport.session"},
        ),
        ("aiolimiter", {"client.pacer"}),
        ("tenacity", {"client.pacer", "storage.object_store"}),
        ("obstore", {"storage.object_store"}),
        ("sqlite3", {"budget.database", "budget.removal", "storage.sqlite"}),
        (
            "cyclopts",
            {"cli.command_line.app", "cli.command_line.described", "cli.main"}
            | {"config.files", "config.mistakes", "config.sources"},
        ),
        ("psutil", {"storage.filesystem"}),
        ("platformdirs", {"credentials.token_store", "storage.folders"}),
        ("keyring", {"credentials.token_store"}),
        ("pyarrow", {"arrow", "extras"}),
        ("backports", {"extras"}),
        ("csv", {"bitly.exports", "links.tables"}),
        ("idna", {"bitly.bitlinks"}),
        ("duckdb", {"extras"}),
        ("jinja2", {"extras"}),
        ("vl_convert", {"extras"}),
        ("pyspark", {"extras"}),
        ("rich", {"cli.show", "reports.top", "reporting.live_display", "reporting.status_text"}),
        ("redis", {"extras", "fleet.connecting"}),
        ("structlog", {"reporting.logs"}),
        ("prometheus_client", {"reporting.prometheus"}),
    ],
)
def test_foreign_packages_stay_in_their_rooms(foreign: str, rooms: set[str]) -> None:
    assert {name_of(path) for path in FILES if foreign in {each.partition(".")[0] for each in imported(path)}} == rooms


@pytest.mark.parametrize(
    ("word", "rooms"),
    [
        (
            r"\b(?:os\.)?(?:fsync|rename)\(",
            {"dataset.journal", "dataset.part_publisher", "engines.shared_folder"}
            | {"storage.filesystem", "storage.storage"},
        ),
        (r"(?<!\.)\bprint\(", {"cli.demo", "cli.first_steps", "cli.show", "reporting.terminal"}),
        (r"\bsys\.exit\(|\b_exit\(", {"cli.exit_codes", "cli.main", "signals"}),
        (
            r"\bSELECT |\bINSERT |\bUPDATE .* SET",
            {"budget.database", "budget.usage", "dataset.ledger", "storage.scratch"}
            | {"storage.sqlite", "sums.queries", "sums.rows_table"},
        ),
    ],
)
def test_side_effects_stay_in_their_rooms(word: str, rooms: set[str]) -> None:
    assert {name_of(path) for path in FILES if re.search(word, path.read_text())} == rooms
