"""The placeholders in an output's path: `lake/{facet}/dt={dt}`."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from string import Formatter

from harvester.bitly.facets import FACETS
from harvester.config.options import RunOptions, home_expanded
from harvester.config.parsing import check_choice, facets_of, moment_of, only_one, periods_of
from harvester.errors import UsageError

_MEANINGS = {"dt": "the first UTC day of the period, else that of --unit-reference", "facet": "--facet"}
_MIN_SIMILARITY = 0.3
"""Low enough for `{day}` to be answered with `{dt}`."""
_NO_DEFAULT_DAY = (
    ": by default it is the moment of the first run, and tomorrow the same command would pay for the list again"
)


def fill_output(options: RunOptions) -> RunOptions:
    """Return the options with the placeholders in --out and --work-dir filled in: `lake/{facet}/dt={dt}`.

    To be called once: the filled path may contain braces, which a second call would read as placeholders.

    Raises:
        UsageError: an unknown placeholder, several facets or periods, or {dt} without a day.
    """
    query = options.query
    facet, period = only_one("--facet", facets_of(query)), only_one("--since", periods_of(query) or [None])
    reference = query.unit_reference if period is None else period.start

    def filled(option: str, path: str) -> str:
        return filled_path(option, path, facet, reference, because=_NO_DEFAULT_DAY)

    output = options.output
    out = filled("--out", output.out)
    work_dir = None if output.work_dir is None else filled("--work-dir", output.work_dir)
    return replace(options, output=replace(output, out=out, work_dir=work_dir))


def filled_path(name: str, path: str, facet: str, unit_reference: str | None, *, because: str = "") -> str:
    """Return a path with `~` expanded, and its placeholders filled in; `{{` and `}}` stand for braces.

    name: what the path is called in errors. facet, unit_reference: what {facet} and {dt} stand for. because: why the
    day has no default, for the error.

    Raises:
        UsageError: an unknown facet, placeholder or home folder, {dt} without a moment, or an unbalanced brace.
    """
    path = home_expanded(path, name)
    check_choice("--facet", facet, tuple(FACETS))
    day = None if unit_reference is None else moment_of("--unit-reference", unit_reference).date().isoformat()
    return _filled(name, path, {"dt": day, "facet": facet}, because)


def layout_patterns(name: str, path: str) -> list[str]:
    """Return the patterns of all outputs of a layout: a path for each facet where {facet} stands, `*` for {dt}.

    name: what the path is called in errors. Raises as `filled_path`.
    """
    path = home_expanded(path, name)
    return list(dict.fromkeys(_filled(name, path, {"dt": "*", "facet": facet}, "") for facet in FACETS))


def _filled(name: str, path: str, values: Mapping[str, str | None], because: str) -> str:
    try:
        pieces = list(Formatter().parse(path))
    except ValueError as error:
        raise UsageError(f"{path}: an unmatched brace; write {{{{ or }}}} for a brace", option=name) from error
    filled = ""
    for text, field, form, conversion in pieces:
        filled += text
        if field is None:
            continue
        placeholder = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        if placeholder not in values:
            raise UsageError(f"{path}: {{{placeholder}}} is not a placeholder; {_nearest(placeholder)}", option=name)
        value = values[placeholder]
        if value is None:
            raise UsageError(
                f"{path}: {{{placeholder}}} is {_MEANINGS[placeholder]}, which is not set{because}. "
                f"Today's would be --unit-reference {datetime.now(UTC).date()}; one day's metrics are --day yesterday",
                option=name,
            )
        filled += value
    return filled


def _nearest(shown: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    if nearest := get_close_matches(shown, _MEANINGS, 1, _MIN_SIMILARITY):
        return f"did you mean {{{nearest[0]}}}, {_MEANINGS[nearest[0]]}? Write {{{{ and }}}} for braces"
    known = " and ".join(f"{{{each}}}, {meaning}" for each, meaning in _MEANINGS.items())
    return f"there are {known}. Write {{{{ and }}}} for braces"


def escape_braces(path: str) -> str:
    """Return a path as it must be written where placeholders are filled in: with its braces doubled."""
    return path.replace("{", "{{").replace("}", "}}")
