"""A real Chromium without a window, which reports everything that a page does: requests, errors, dialogs."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
REQUIRED = "BROWSER_TESTS"
"""A variable: with `required` it is a failure that there is no Chromium, else these tests are skipped."""
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SERIOUS = {"serious", "critical"}


@dataclass
class Opened:
    """A file that is open in a browser. told: errors, console messages and dialogs. requests: beside the file's own."""

    page: Page
    told: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def hear(self, dialog: Dialog) -> None:
        """Note what a dialog says, and close it."""
        self.told.append(dialog.message)
        dialog.dismiss()

    def faults(self) -> list[str]:
        """What axe finds that keeps people from reading the page: its serious and critical faults."""
        self.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
        found: dict[str, Any] = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        serious = [each for each in found["violations"] if each["impact"] in SERIOUS]
        return [f"{each['id']}: {each['nodes'][0]['html']:.200}" for each in serious]


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser; skip the test where there is none."""
    if not CHROMIUM.exists():
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(f"{CHROMIUM} is missing, and {REQUIRED}=required")
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="harvester-chromium-") as home, sync_playwright() as playwright:
        variables: dict[str, str | float | bool] = {"HOME": home, "PATH": os.environ["PATH"], "TMPDIR": home}
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_ARGUMENTS, env=variables)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **settings: Any) -> Iterator[Opened]:
    """Open a file. settings: of playwright's context, such as color_scheme; the window is wide by default."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **settings})
    try:
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.told.append(message.text))
        found.page.on("pageerror", lambda error: found.told.append(str(error)))
        found.page.on("dialog", found.hear)
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        assert found.requests.pop(0) == path.as_uri()
        yield found
    finally:
        context.close()
