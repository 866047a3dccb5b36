"""Builds the documentation site from README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: `make docs`.

The pages stay readable on their own, with relative links. The site's sources are a copy of them in build/site-source,
in the same folders, plus the API reference, which mkdocstrings makes from the docstrings.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "build" / "site-source"
TARGET = ROOT / "build" / "site"
_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_OTHER_FILES = ("config.example.toml", "Dockerfile", "compose.yaml", "examples/one-link-and-a-list.ipynb")
_API = "docs/api.md"


def copy_pages() -> None:
    """Copy the pages and what they link to, and put index.md where the site expects a folder's first page."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    paths = [ROOT / name for name in (*_PAGES, *_OTHER_FILES)]
    paths += [path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".yml", ".svg", ".png"}]
    for path in paths:
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.with_name(copy.name.replace("README", "index")).write_text(_with_site_links(path.read_text()))
        else:
            shutil.copyfile(path, copy)
    shutil.copyfile(ROOT / "docs" / "site" / "api.md", SOURCE / _API)
    (SOURCE / "docs" / "site" / "api.md").unlink()


def _with_site_links(text: str) -> str:
    """Let links lead to index.md, also those to a folder."""
    text = re.sub(r"(\]\([^)\s:]*?)README\.md", r"\1index.md", text)
    return re.sub(r"\]\(((?:docs/)?decisions)\)", r"](\1/index.md)", text)


def main() -> int:
    """Build the site; a warning is an error."""
    copy_pages()
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", "zensical.toml"]
    done = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    # A docstring that griffe cannot parse is a warning that --strict does not know.
    unparsed = "griffe:" in done.stderr
    return 1 if done.returncode or unparsed or not (TARGET / _API.replace(".md", "/index.html")).is_file() else 0


if __name__ == "__main__":
    sys.exit(main())
