"""`harvester report`: one HTML file that needs nothing else, and sends no request."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from harvester._version import __version__
from harvester.config.placeholders import layout_patterns
from harvester.errors import OutputError, UsageError
from harvester.extras import import_jinja2, import_vl_convert
from harvester.reports.run_sections import run_sections
from harvester.reports.section import Section, bounded_list
from harvester.reports.sections import harvest_sections
from harvester.reports.tables import LONGEST_CARRIED, damage_text, fitted, printable
from harvester.storage.filesystem import atomic_replace
from harvester.storage.location import followed, is_own_link, is_url, normal
from harvester.storage.object_store import ObjectStorage, open_store
from harvester.sums.figures import Sums
from harvester.sums.queries import MOST_LINES, sums_of
from harvester.sums.sources import Source, Sources, sources_at

MARK = b'<meta name="generator" content="harvester report '
"""Stands in the first bytes of each report."""
_MARKED_BYTES = 2048
_MOST_BYTES = 1_000_000
"""Of one report: less than 1 MiB."""
_MOST_CELLS = 40_000
"""Cells of all tables of one report, about 20 bytes each."""
_FRAME = (
    '<iframe title="harvester report" srcdoc="{}" sandbox="allow-scripts" '
    'style="width:100%;height:46rem;border:1px solid #8888;border-radius:6px"></iframe>'
)


class Report:
    """A report that shows outputs. html: the whole file. left_out: what of the outputs is not in its sums.

    damaged: files that cannot be read as their manifest says, and the commands that find out more.
    """

    def __init__(self, html: str, left_out: tuple[str, ...] = (), damaged: tuple[str, ...] = ()) -> None:
        self.html = html
        self.left_out = left_out
        self.damaged = damaged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, as a whole or not at all. Another report of that name is replaced.

        path: a file, or a store's URL. A symbolic link stays, and the file that it leads to is written.

        Raises:
            UsageError: the name belongs to something else, or its folder is missing. OutputError: it cannot be written.
        """
        name, data = os.fsdecode(path), self.html.encode()
        check_replaceable(name)
        if is_url(name):
            store, last = _place_in_store(name)
            store.replace(last, [data], kind="text/html; charset=utf-8")
            return
        try:
            atomic_replace(followed(os.path.abspath(name)), [data])
        except OSError as error:
            raise OutputError(f"{name}: {error.strerror or error}") from error

    def _repr_html_(self) -> str:
        """Return the report in a frame of its own, as a notebook shows it."""
        return _FRAME.format(escape(self.html))

    def __repr__(self) -> str:
        return f"<harvester report, {len(self.html):,} characters>"


def report(out: str | os.PathLike[str]) -> Report:
    """Return a report about outputs; in a notebook it is shown, `.save("report.html")` writes it.

    out: a folder, a growing file, a store's URL, a folder of outputs, or a layout such as "lake/{facet}/dt=*".

    Raises:
        UsageError: there is no output, or the extra `report` is not installed. OutputError: it cannot be read.
    """
    if not isinstance(out, str | bytes | os.PathLike):
        raise UsageError(f"out: must be a path, not {type(out).__name__}")
    name = os.fsdecode(out)
    needed = "the report needs a library"
    import_jinja2(needed)
    import_vl_convert(needed)
    sources = sources_at(name, layout_patterns("OUT", name))
    return _made(name, sources)


def check_replaceable(path: str) -> None:
    """Raise UsageError if a report cannot have this name: another file has it, or its folder is missing."""
    if is_url(path):
        store, last = _place_in_store(path)
        try:
            with closing(store.open(last)) as stream:
                _check_mark(path, stream.read(_MARKED_BYTES))
        except FileNotFoundError:
            pass
        return
    link, file = os.path.abspath(path), followed(os.path.abspath(path))
    if not os.path.isdir(os.path.dirname(file)):
        folder = os.path.dirname(path if link == file else file)
        raise UsageError(f"{path}: the folder {folder} does not exist; make it first", option="--to")
    if link != file and not is_own_link(link):
        raise UsageError(f"{path} is a symbolic link of another user: name the file", option="--to")
    if not os.path.lexists(file):
        return
    if not os.path.isfile(file):  # a FIFO would be waited for
        what = "a folder: name a file in it" if os.path.isdir(file) else "not a file: name another one"
        raise UsageError(f"{path} is {what}", option="--to")
    try:
        with open(file, "rb") as stream:
            _check_mark(path, stream.read(_MARKED_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", option="--to") from error


def _check_mark(path: str, beginning: bytes) -> None:
    if MARK not in beginning:
        raise UsageError(f"{path} exists, and is not a report: name another file", option="--to")


def _place_in_store(url: str) -> tuple[ObjectStorage, str]:
    """Return the prefix of an object's URL, and the object's name there."""
    if url.endswith("/"):
        raise UsageError(f"{url}: must name an object, such as {url}report.html", option="--to")
    prefix, _, name = normal(url, option="--to").rpartition("/")
    return open_store(prefix), name


def _made(name: str, sources: Sources) -> Report:
    sums = sums_of(sources, lines=_lines_for(sources), carried=LONGEST_CARRIED + 1)
    sections = sections_of(sources.found, sums)
    html = _page(name, sources, [replace(each, tables=[]) for each in sections])
    left = _MOST_BYTES - len(html.encode())
    tables = iter(fitted([table for each in sections for table in each.tables], left))
    whole = [replace(each, tables=[next(tables) for _ in each.tables]) for each in sections]
    return Report(_page(name, sources, whole), sums.left_out, tuple(map(damage_text, sums.damaged)))


def sections_of(sources: Sequence[Source], sums: Sums) -> list[Section]:
    """Return the sections of the report, in their order."""
    found = [*harvest_sections(sources, sums), *run_sections(sources)]
    if sums.left_out:
        found.append(Section("What is not in these sums", [*bounded_list([f"{text}." for text in sums.left_out])]))
    return found


def _page(name: str, sources: Sources, sections: list[Section]) -> str:
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    jinja2 = import_jinja2("the report needs a library")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["with_code"] = lambda text: jinja2.utils.markupsafe.Markup(_with_code(text))
    html: str = environment.from_string(_text("report.html.jinja")).render(
        title=printable(name),
        sections=sections,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        updated=max(source.manifest.updated for source in sources.found).replace("T", " ").replace("Z", " UTC"),
        outputs=len(sources.found),
        version=__version__,
        style=_text("report.css"),
        script=script,
        script_hash=f"sha256-{digest}",
    )
    return html


def _with_code(text: str) -> str:
    """Return a text as HTML, with what stands between backquotes as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _lines_for(sources: Sources) -> int:
    """Return the most lines of a table: fewer than MOST_LINES where many facets have a table each."""
    facets = len({source.facet for source in sources.found})
    return min(MOST_LINES, _MOST_CELLS // (8 * facets))


def _text(name: str) -> str:
    return (files("harvester.reports") / name).read_text(encoding="utf-8")
