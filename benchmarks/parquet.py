"""What does a Parquet part take? Peak RSS and CPU while it is made, and its size, by the libraries that could make it.

usage: python -m benchmarks.parquet [--rows 10000000] [--folder /tmp] [--rounds 3]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.measuring import Used, run, said
from benchmarks.outputs import QUERY
from harvester.bitly.verdicts import Answer
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Kind, Shape, columns_of
from harvester.sandbox import metrics_for

MOST_BYTES = 200 * 10**6
"""Of resident memory, Python and library and all, however many rows a part has."""
COMPARED_ROWS = 1_000_000
_TYPES = {
    Kind.TEXT: "VARCHAR",
    Kind.INTEGER: "BIGINT",
    Kind.BOOLEAN: "BOOLEAN",
    Kind.MOMENT: "TIMESTAMPTZ",
    Kind.METRICS: "STRUCT(value VARCHAR, clicks BIGINT)[]",
}


def rows() -> Iterator[bytes]:
    """Yield rows without end, each another link's with referrers of its own."""
    maker, number = RowBuilder(QUERY, "9a0822b22f12"), 0
    while True:
        link = f"bit.ly/3{number:07x}"
        metrics = metrics_for(link, "referrers", 50)["metrics"]
        answer = Answer(metrics, sum(metric["clicks"] for metric in metrics), 30, "2026-11-23T06:00:00+0000")
        yield maker.row(link, maker.key(link), answer, "2026-11-23T07:08:09Z") + b"\n"
        number += 1


def by_pyarrow(lines: Path | None, count: int, target: Path) -> None:
    """Make a part as harvester does. lines: the rows; by default they are made meanwhile."""
    with ExitStack() as stack:
        source = stack.enter_context(lines.open("rb")) if lines else rows()
        target_stream = stack.enter_context(target.open("wb"))
        write_part(
            islice(source, count), HashingWriter(target_stream), PartFormat(Format.PARQUET, Shape.NESTED, "referrers")
        )


def by_duckdb(lines: Path | None, count: int, target: Path) -> None:  # noqa: ARG001 - all rows of lines
    """Make the same of a file of rows: in one thread, in their order, with as little memory as it works with."""
    import duckdb  # noqa: PLC0415 - it would count for the other one, too

    assert lines
    columns = {column.name: _TYPES[column.kind] for column in columns_of(Shape.NESTED, "referrers")}
    with duckdb.connect() as database:
        for setting in ("threads = 1", "memory_limit = '150MB'", "TimeZone = 'UTC'"):
            database.execute(f"SET {setting}")
        database.read_json(str(lines), columns=columns, format="newline_delimited").write_parquet(
            str(target), compression="zstd", row_group_size=65_536
        )


def write_lines(lines: Path | None, count: int, target: Path) -> None:  # noqa: ARG001 - all works are called alike
    """Write rows as lines."""
    with target.open("wb") as stream:
        stream.writelines(islice(rows(), count))


WORKS: dict[str, Callable[[Path | None, int, Path], None]] = {
    "pyarrow": by_pyarrow,
    "duckdb": by_duckdb,
    "lines": write_lines,
}


def done(work: str, lines: Path | None, count: int, target: Path) -> Used:
    """Do work in a process of its own."""
    return run("-m", "benchmarks.parquet", "--work", work, str(lines or ""), str(count), str(target))


def compare(folder: Path, rounds: int) -> None:
    """Let both make a part of the same rows, in turn, and print what they take."""
    lines, part = folder / "rows.ndjson", folder / "part.parquet"
    done("lines", None, COMPARED_ROWS, lines)
    found: dict[str, list[Used]] = {"pyarrow": [], "duckdb": []}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for library, used in found.items():
            used.append(done(library, lines, COMPARED_ROWS, part))
            sizes[library] = part.stat().st_size
    for library, used in found.items():
        print(
            f"{library}: {COMPARED_ROWS:,} rows, {lines.stat().st_size / 1e6:.0f} MB of lines: part "
            f"{sizes[library] / 1e6:.1f} MB, CPU {median(each.cpu_seconds for each in used):.1f} s, peak "
            f"{max(each.peak_bytes for each in used) / 1e6:.0f} MB",
            flush=True,
        )


def main() -> int:
    """Compare, then make one large part; 1 when the promise does not hold."""
    parser = argparse.ArgumentParser(description="What a Parquet part takes.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the parts lie meanwhile; about 1.5 GB")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work, lines, count, target = options.work
        WORKS[work](Path(lines) if lines else None, int(count), Path(target))
        return 0
    with tempfile.TemporaryDirectory(prefix="harvester-parquet-", dir=options.folder) as folder:
        compare(Path(folder), options.rounds)
        part = Path(folder) / "large.parquet"
        used = done("pyarrow", None, options.rows, part)
        holds = used.peak_bytes < MOST_BYTES
        took = f"{part.stat().st_size / 1e6:.0f} MB, peak {used.peak_bytes / 1e6:.0f} MB"
        print(f"a part of {options.rows:,} rows: {took}: {said(holds=holds)}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
