"""The published rows of an output as an Arrow table: a folder's parts, or the committed bytes of a growing file."""

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harvester.config.parsing import filled_path
from harvester.dataset.manifest import Manifest, parse
from harvester.dataset.publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.extras import import_pyarrow
from harvester.rows.encode import Format, arrow_schema
from harvester.rows.schema import Shape
from harvester.storage.location import GROWING_ENDINGS, MANIFEST, is_url, normal
from harvester.storage.object_store import ObjectStorage, open_store

if TYPE_CHECKING:
    import pyarrow as pa


_COMPRESSION = {Format.NDJSON: None, Format.GZIP: "gzip", Format.ZSTD: "zstd"}
_BLOCK_BYTES = 32 * 1024 * 1024
"""A row must fit into one block. A response has at most 4 MiB, and its row may be longer: JSON escapes characters."""


def read(
    out: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    facet: str = "referrers",
    unit_reference: str | datetime | None = None,
) -> "pa.Table":
    """Return the rows of an output as a pyarrow.Table, also during a run; `.to_pandas()` turns it into a data frame.

    columns: some of a row's keys; by default all, in the row's order. metrics is a list of structs of value and clicks,
    unit_reference and fetched_at are timestamps in UTC. facet, unit_reference: fill {facet} and {dt} in out.

    Raises:
        UsageError: pyarrow is not installed, or harvester wrote nothing there. OutputError: the output is damaged.
    """
    if not isinstance(out, str | bytes | os.PathLike):
        raise UsageError(f"out: a path was expected, not {type(out).__name__}")
    if isinstance(columns, str):
        raise UsageError(f'columns: a list was expected; for this one, give ["{columns}"]')
    moment = unit_reference.isoformat() if isinstance(unit_reference, datetime) else unit_reference
    arrow = import_pyarrow("harvester.read needs pyarrow", extra="arrow")
    path = filled_path("out", os.fsdecode(out), facet, moment)
    objects = open_store(normal(path)) if is_url(path) else None
    schema = arrow_schema(_shape_of(path, objects))
    chosen = schema.names if columns is None else list(columns)
    for name in chosen:
        if name not in schema.names:
            raise UsageError(f"columns: {name} is none of {', '.join(schema.names)}")
    wanted = arrow.schema([schema.field(name) for name in chosen])
    try:
        tables = [table.select(chosen) for table in _tables(arrow, path, schema, objects)]
    except PermissionError as error:
        raise OutputError(f"{error.filename or path}: {error.strerror}") from error
    except (arrow.ArrowInvalid, OSError) as error:
        raise OutputError(f"{path} has something in it that is no row: {error}") from error
    return arrow.concat_tables([wanted.empty_table(), *tables])


def _parsed(arrow: Any, stream: Any, schema: "pa.Schema") -> "pa.Table":
    with stream:
        data = stream.read_buffer()
    if not data.size:  # Arrow reports an empty file as damaged
        return schema.empty_table()
    table = arrow.json.read_json(
        arrow.BufferReader(data),
        arrow.json.ReadOptions(block_size=_BLOCK_BYTES),
        arrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return table.cast(schema)  # the cast sets which columns are never null


def _shape_of(out: str, objects: ObjectStorage | None) -> Shape:
    """Return the shape of the rows, as the manifest has it; nested where there is no manifest."""
    path = f"{out}/{MANIFEST}"
    try:
        text = objects.get(MANIFEST) if objects else _bytes_of(path)
    except (FileNotFoundError, NotADirectoryError):
        text = None
    return Shape.NESTED if text is None else Shape(_manifest_in(text, path).shape)


def _bytes_of(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _manifest_in(text: bytes, path: str) -> Manifest:
    try:
        return parse(text, path)
    except UsageError as error:
        raise OutputError(f"{path}: no manifest of harvester's; run the harvest again, which writes it anew") from error


def _tables(arrow: Any, out: str, schema: "pa.Schema", objects: ObjectStorage | None) -> Iterator["pa.Table"]:
    """Yield the published rows, one table for each file."""
    if objects:
        yield from _parts_in_store(arrow, objects, schema)
    elif os.path.isdir(out):
        yield from _parts(arrow, out, schema)
    elif out.lower().endswith(GROWING_ENDINGS):
        yield _parsed(arrow, _growing(arrow, out), schema)
    else:
        raise UsageError(f"{out}: a folder, or a file that ends in .ndjson or .jsonl, was expected")


def _parts(arrow: Any, out: str, schema: "pa.Schema") -> Iterator["pa.Table"]:
    for name, form in _parts_among(os.listdir(out), out):
        try:
            yield _part(arrow, os.path.join(out, name), form, schema)
        except FileNotFoundError:
            continue  # a loader has moved it away since the listing


def _parts_in_store(arrow: Any, objects: ObjectStorage, schema: "pa.Schema") -> Iterator["pa.Table"]:
    for name, form in _parts_among(objects.names(), objects.url):
        try:
            with objects.open(name) as stream:
                data = stream.read()
        except FileNotFoundError:
            continue  # a loader has taken it just now
        yield _part(arrow, arrow.BufferReader(data), form, schema)


def _parts_among(names: list[str], out: str) -> list[tuple[str, Format]]:
    parts = [(name, Format(match["format"])) for name in sorted(names) if (match := PART_NAME.fullmatch(name))]
    if not parts and MANIFEST not in names and "_harvester" not in names:
        raise UsageError(f"{out}: nothing in it was written by harvester")
    return parts


def _part(arrow: Any, source: Any, form: Format, schema: "pa.Schema") -> "pa.Table":
    """Read a part. source: its path, or a stream of it."""
    if form is Format.PARQUET:
        return arrow.parquet.read_table(source, schema=schema)
    return _parsed(arrow, arrow.input_stream(source, compression=_COMPRESSION[form]), schema)


def _growing(arrow: Any, out: str) -> Any:
    """Return the growing file's bytes as far as the manifest counts them; those behind may be half a row."""
    folder = out + ".harvester"
    path = os.path.join(folder, MANIFEST)
    try:
        committed = sum(part.bytes for part in _manifest_in(_bytes_of(path), path).parts)
    except FileNotFoundError as error:
        if os.path.isdir(folder):
            return arrow.BufferReader(b"")  # the run has begun, and nothing is committed yet
        raise UsageError(f"{out}: not begun by harvester, or its folder {folder} is gone") from error
    if not committed:
        return arrow.BufferReader(b"")
    try:
        with arrow.memory_map(out) as whole:
            data = whole.read_buffer(committed)
    except FileNotFoundError as error:
        raise OutputError(f"{out} is gone; its folder {folder} is still there") from error
    if data.size < committed:
        raise OutputError(f"{out} has {data.size} bytes and had {committed}: somebody has cut it")
    return arrow.BufferReader(data)
