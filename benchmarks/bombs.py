"""Is memory bounded whatever a list unpacks to, and however large the answers are? Peak RSS of each.

usage: python -m benchmarks.bombs [--folder /tmp]
"""

import argparse
import gzip
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.measuring import NO_LIMITS, run, serving, write_list

MOST_MORE_BYTES = 150 * 10**6
"""A list may need this much more than a list of one link; Parquet of long answers, than lines of the same answers."""
_MIB = 1 << 20
_LONG_ANSWER = 88_000
"""Metrics of an answer of nearly 4 MiB, the largest that is read."""
_ANSWERS = 20


def _parquet(path: Path, value: str, count: int, **how: object) -> None:
    """Write a Parquet list of one value, many times."""
    import pyarrow as pa  # noqa: PLC0415 - it would count for the lists of lines, too
    import pyarrow.parquet  # noqa: PLC0415

    how = {"compression": "zstd", "write_statistics": False, "write_batch_size": 4, **how}
    pa.parquet.write_table(pa.table({"link": pa.array([value] * count)}), path, **how)


def _zstd(path: Path) -> None:
    """Write a zstd list whose frame asks for a window of 2 GiB: its header, and a block of one byte many times."""
    blocks = b"".join((1 << 1 | 131_072 << 3 | last).to_bytes(3, "little") + b" " for last in (*[0] * 4000, 1))
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + blocks)


def _one(path: Path) -> None:
    path.write_text("bit.ly/a\n", encoding="ascii")


def _spaces(path: Path, line: bytes = b" " * _MIB, lines: int = 1000) -> None:
    with gzip.open(path, "wb", compresslevel=9) as target:
        for _ in range(lines):
            target.write(line)


_DELTA = {"use_dictionary": False, "column_encoding": {"link": "DELTA_BYTE_ARRAY"}}
LISTS: dict[str, Callable[[Path], None]] = {
    "one.parquet": lambda path: _parquet(path, "bit.ly/a", 1),
    "dictionary.parquet": lambda path: _parquet(path, "x" * 9 * _MIB, 250),
    "dictionary-of-30-MiB.parquet": lambda path: _parquet(path, "x" * 30 * _MIB, 60),
    "plain.parquet": lambda path: _parquet(path, "x" * 30 * _MIB, 60, use_dictionary=False, write_batch_size=1),
    "plain-of-1-MiB.parquet": lambda path: _parquet(path, "x" * _MIB, 1000, use_dictionary=False, write_batch_size=1),
    "large-page.parquet": lambda path: _parquet(path, "x" * 9 * _MIB, 100, use_dictionary=False, write_batch_size=100),
    "prefixes.parquet": lambda path: _parquet(path, "x" * 15 * _MIB, 60, **_DELTA),
    "prefixes-of-1-MiB.parquet": lambda path: _parquet(path, "x" * _MIB, 1900, **_DELTA),
    "statistics.parquet": lambda path: _parquet(path, "x" * 15 * _MIB, 5, write_statistics=True, write_page_index=True),
    "one.txt": _one,
    "endless-line.txt.gz": _spaces,
    "endless-line.csv.gz": lambda path: _spaces(path, b'"' + b"a," * (_MIB // 2)),
    "endless-line.ndjson.gz": lambda path: _spaces(path, b"[" * _MIB),
    "window-of-2-GiB.txt.zst": _zstd,
}


def read(path: Path) -> None:
    """Read a list to its end, or until it is refused."""
    from harvester.errors import HarvesterError  # noqa: PLC0415 - what writes the lists does without
    from harvester.links.files import read, resolve_lists  # noqa: PLC0415

    with suppress(HarvesterError):
        for _ in read(resolve_lists([str(path)])):
            pass


def measure_lists(folder: Path) -> bool:
    """Print the peak of reading each list; return whether all are within the promise."""
    holds, base = True, 0
    for name in LISTS:
        run("-m", "benchmarks.bombs", "--write", str(folder / name))
        peak = run("-m", "benchmarks.bombs", "--read", str(folder / name)).peak_bytes
        if name.startswith("one."):
            base = peak
        size = (folder / name).stat().st_size
        holds &= _report(f"{name} ({size:,} bytes)", peak, base)
        (folder / name).unlink()
    return holds


def measure_answers(folder: Path) -> bool:
    """Print the peak of runs with ordinary and with long answers; return whether Parquet is within the promise."""
    links = write_list(folder / "links.txt", _ANSWERS)
    for form in ("ndjson.gz", "parquet"):
        print(f"ordinary answers, flat {form}: peak {_harvested(folder, links, form, 0) / 1e6:.0f} MB", flush=True)
    lines, parquet = (_harvested(folder, links, form, _LONG_ANSWER) for form in ("ndjson.gz", "parquet"))
    print(f"{_ANSWERS} answers of 4 MB, flat ndjson.gz: peak {lines / 1e6:.0f} MB", flush=True)
    return _report(f"{_ANSWERS} answers of 4 MB, flat parquet", parquet, lines)


def _harvested(folder: Path, links: Path, form: str, metrics: int) -> int:
    out = folder / f"{form}-{metrics}"
    where = ("--out", str(out), "--state-dir", str(folder / "state"), "--format", form, "--shape", "flat", "--quiet")
    with serving("--metrics", str(metrics)) as url:
        return run("-m", "harvester", "run", str(links), *where, "--base-url", url, *NO_LIMITS).peak_bytes


def _report(what: str, peak: int, base: int) -> bool:
    more = peak - base
    said = "holds" if (holds := more <= MOST_MORE_BYTES) else "DOES NOT HOLD"
    print(f"{what}: peak {peak / 1e6:.0f} MB, {more / 1e6:.0f} more: {said}", flush=True)
    return holds


def main() -> int:
    """Measure lists and answers; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="Peak memory of lists that unpack to gigabytes, and of long answers.")
    parser.add_argument("--folder", help="where lists and output lie meanwhile; about 100 MB")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        LISTS[options.write.name](options.write)
        return 0
    if options.read:
        read(options.read)
        return 0
    with tempfile.TemporaryDirectory(prefix="harvester-bombs-", dir=options.folder) as folder:
        lists, answers = measure_lists(Path(folder)), measure_answers(Path(folder))
    return 0 if lists and answers else 1


if __name__ == "__main__":
    sys.exit(main())
