"""The script that Redis runs, and the names of its keys."""

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    """text: Lua. digest: its SHA-1, by which Redis finds a script that it has run before."""

    text: str
    digest: str


@cache
def budget_script() -> Script:
    """Return the script of the shared budget."""
    text = resources.files(__package__).joinpath("budget.lua").read_text("utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Keys:
    """The names of the budget's keys. The braces keep them together, should Redis be asked to spread its keys."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{{{prefix}}}:budget"
        self.common = [f"{self._prefix}:{name}" for name in ("meta", "processes", "awaited")]

    def of_endpoint(self, server: str, token: str, endpoint: str) -> list[str]:
        """Return the keys of a token at an endpoint."""
        name = f"{self._prefix}:endpoint:{server}|{token}|{endpoint}"
        return [name, f"{name}:at", f"{name}:first"]

    def of_egress(self, server: str, egress: str) -> list[str]:
        """Return the keys of the connections from an address to a server."""
        name = f"{self._prefix}:egress:{server}|{egress}"
        return [name, f"{name}:slots"]
