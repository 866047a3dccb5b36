"""`harvester report`: one HTML file that needs nothing else, and sends no request."""

import base64
import hashlib
import os
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from harvester._version import __version__
from harvester.config.placeholders import layout_patterns
from harvester.errors import OutputError, UsageError
from harvester.extras import import_jinja2, import_vl_convert
from harvester.reports.sections import sections_of
from harvester.reports.tables import printable
from harvester.storage.filesystem import atomic_replace
from harvester.sums.queries import MOST_LINES, sums_of
from harvester.sums.sources import Sources, sources_at

MARK = b'<meta name="generator" content="harvester report '
"""Stands in the first bytes of each report."""
_MARKED_BYTES = 2048
_MOST_CELLS = 40_000
"""Cells of all tables of one report, about 20 bytes each."""
_FRAME = (
    '<iframe title="harvester report" srcdoc="{}" sandbox="allow-scripts" '
    'style="width:100%;height:46rem;border:1px solid #8888;border-radius:6px"></iframe>'
)


class Report:
    """A report that shows outputs. html: the whole file. left_out: what of the outputs is not in its sums."""

    def __init__(self, html: str, left_out: tuple[str, ...] = ()) -> None:
        self.html = html
        self.left_out = left_out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, as a whole or not at all. Another report of that name is replaced.

        Raises:
            UsageError: the name belongs to something else. OutputError: the file cannot be written.
        """
        name = os.path.abspath(path)
        check_replaceable(name)
        try:
            atomic_replace(name, [self.html.encode()])
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
    """Raise UsageError if a file of this name exists that is not a report."""
    if not os.path.lexists(path):
        return
    if not os.path.isfile(path):  # a FIFO would be waited for
        raise UsageError(f"{path} is not a file: name another one", option="--to")
    try:
        with open(path, "rb") as stream:
            beginning = stream.read(_MARKED_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", option="--to") from error
    if MARK not in beginning:
        raise UsageError(f"{path} exists, and is not a report: name another file", option="--to")


def _made(name: str, sources: Sources) -> Report:
    sums = sums_of(sources, lines=_lines_for(sources))
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    jinja2 = import_jinja2("the report needs a library")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html: str = environment.from_string(_text("report.html.jinja")).render(
        title=printable(name),
        sections=sections_of(sources.found, sums),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        updated=max(source.manifest.updated for source in sources.found).replace("T", " ").replace("Z", " UTC"),
        outputs=len(sources.found),
        version=__version__,
        style=_text("report.css"),
        script=script,
        script_hash=f"sha256-{digest}",
    )
    return Report(html, sums.left_out)


def _lines_for(sources: Sources) -> int:
    """Return the most lines of a table: fewer than MOST_LINES where many facets have a table each."""
    facets = len({source.facet for source in sources.found})
    return min(MOST_LINES, _MOST_CELLS // (8 * facets))


def _text(name: str) -> str:
    return (files("harvester.reports") / name).read_text(encoding="utf-8")
