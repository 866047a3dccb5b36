"""Makes docs/report.png: the beginning of the report that `harvester demo` makes of its own run, in Chromium."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "report.png"
_CHROMIUM = "/usr/bin/chromium"
_WIDTH, _HEIGHT = 900, 714


def main() -> None:
    """Run the demo, and save what the first screen of its report shows."""
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "harvester", "demo", "--out", "lake"]
        subprocess.run(command, cwd=folder, env=variables, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "harvester", "report", "lake"]
        subprocess.run(command, cwd=folder, env=variables, check=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
            page.goto((Path(folder) / "report.html").as_uri())
            page.screenshot(path=PICTURE)
            browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
