"""Reads what harvester has written, and holds it against what the server has sent."""

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harvester.bitly.facets import FACETS
from harvester.sandbox import metrics_for


def rows(out: Path) -> list[dict[str, Any]]:
    """Every published row: of a folder's parts in their order, or of the growing file."""
    files = sorted(out.glob("part-*.ndjson*")) if out.is_dir() else [out]
    return [json.loads(line) for file in files for line in content(file).split(b"\n")[:-1]]


def content(file: Path) -> bytes:
    """A part's NDJSON, whatever it is packed in."""
    data = file.read_bytes()
    return gzip.decompress(data) if file.suffix == ".gz" else data


def public(out: Path) -> Path:
    """The folder of the `_` files."""
    return out if out.is_dir() else out.with_name(out.name + ".harvester")


def manifest(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((public(out) / "_manifest.json").read_text())
    return result


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (public(out) / "_failures.ndjson").read_text().splitlines()]


def expected_metrics(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics that a row of the sandbox's must have."""
    names = ("bitlink", "facet", "size", "unit", "units", "unit_reference")
    bitlink, facet, size, unit, units, reference = (row[name] for name in names)
    return FACETS[facet].metrics_in(metrics_for(bitlink, facet, size, unit, units, str(reference)))


def check_reconciled(out: Path, bitlinks: set[str]) -> None:
    """Every bitlink has exactly one row or one refusal, the rows are what the sandbox sent, the counts agree."""
    found, refused = rows(out), [line for line in failures(out) if line["kind"] == "refused"]
    seen = Counter(row["bitlink"] for row in found) + Counter(line["bitlink"] for line in refused)
    assert {link: n for link, n in seen.items() if n > 1} == {}
    assert set(seen) == bitlinks
    assert len({row["record_id"] for row in found}) == len(found)
    for row in found:
        assert row["metrics"] == expected_metrics(row)
    counts = manifest(out)["dataset"]
    assert counts["rows"] == len(found)
    assert counts["refused"] == len(refused)
    assert counts["truncated"] == sum(row["truncated"] for row in found)
    assert counts["calls"] == counts["rows"] + counts["refused"] + counts["failed"] + counts["pending"]
    assert sum(part["rows"] for part in manifest(out)["parts"]) == len(found)
