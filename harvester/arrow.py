"""What a harvest has published, as an Arrow table: a folder's parts, or the growing file as far as it is certain."""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from harvester.config.parsing import path_of
from harvester.dataset.publisher import MANIFEST
from harvester.errors import OutputError, UsageError
from harvester.rows.encode import Format, arrow_schema
from harvester.rows.schema import Shape
from harvester.storage.location import GROWING_ENDINGS
from harvester.storage.object_store import ObjectStorage, is_url, open_store

if TYPE_CHECKING:
    import pyarrow as pa


_PART = re.compile(rf"part-[0-9a-f]+-\d{{5,}}\.({'|'.join(map(re.escape, Format))})")
_COMPRESSION = {Format.NDJSON: None, Format.GZIP: "gzip", Format.ZSTD: "zstd"}
_BLOCK_BYTES = 32 * 1024 * 1024
"""A row must fit into a block; an answer has 4 MiB at most, and JSON may write it longer."""


def read(
    out: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    facet: str = "referrers",
    unit_reference: str | datetime | None = None,
) -> "pa.Table":
    """Give the rows of an output as a pyarrow.Table, while a run goes on too; `.to_pandas()` makes a data frame of it.

    columns: some of a row's keys; by default all, in the row's order. metrics is a list of structs of value and clicks,
    unit_reference and fetched_at are timestamps in UTC. facet, unit_reference: what {facet} and {dt} in out stand for.

    Raises:
        UsageError: pyarrow is not there, or nothing that harvester has written. OutputError: it is damaged.
    """
    if not isinstance(out, str | bytes | os.PathLike):
        raise UsageError(f"out: a path was expected, not {type(out).__name__}")
    if isinstance(columns, str):
        raise UsageError(f'columns: a list was expected; for this one, give ["{columns}"]')
    moment = unit_reference.isoformat() if isinstance(unit_reference, datetime) else unit_reference
    arrow, path = _arrow(), path_of("out", os.fsdecode(out), facet, moment)
    objects = open_store(path) if is_url(path) else None
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


def _arrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.json  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("harvester.read needs pyarrow: pip install 'bitly-harvester[arrow]'") from error
    return pa


def _parsed(arrow: Any, stream: Any, schema: "pa.Schema") -> "pa.Table":
    with stream:
        data = stream.read_buffer()
    if not data.size:  # which Arrow takes for damage
        return schema.empty_table()
    table = arrow.json.read_json(
        arrow.BufferReader(data),
        arrow.json.ReadOptions(block_size=_BLOCK_BYTES),
        arrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return table.cast(schema)  # which says what is never null


def _shape_of(out: str, objects: ObjectStorage | None) -> Shape:
    """Give the shape that the rows have, as the manifest says."""
    if objects:
        return Shape(orjson.loads(objects.get(MANIFEST) or b"{}").get("shape", Shape.NESTED))
    try:
        with open(os.path.join(out, MANIFEST), "rb") as stream:
            return Shape(orjson.loads(stream.read()).get("shape", Shape.NESTED))
    except (FileNotFoundError, NotADirectoryError):
        return Shape.NESTED


def _tables(arrow: Any, out: str, schema: "pa.Schema", objects: ObjectStorage | None) -> Iterator["pa.Table"]:
    """Yield what was published, a table for each file."""
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
            continue  # a loader has taken it just now


def _parts_in_store(arrow: Any, objects: ObjectStorage, schema: "pa.Schema") -> Iterator["pa.Table"]:
    for name, form in _parts_among([thing.name for thing in objects.listing()], objects.url):
        chunks = objects.chunks(name)
        if chunks is not None:
            yield _part(arrow, arrow.BufferReader(b"".join(chunks)), form, schema)


def _parts_among(names: list[str], out: str) -> list[tuple[str, Format]]:
    parts = [(name, Format(match[1])) for name in sorted(names) if (match := _PART.fullmatch(name))]
    if not parts and MANIFEST not in names and "_harvester" not in names:
        raise UsageError(f"{out}: nothing in it was written by harvester")
    return parts


def _part(arrow: Any, source: Any, form: Format, schema: "pa.Schema") -> "pa.Table":
    """Read a part. source: its path, or a stream of it."""
    if form is Format.PARQUET:
        return arrow.parquet.read_table(source, schema=schema)
    return _parsed(arrow, arrow.input_stream(source, compression=_COMPRESSION[form]), schema)


def _growing(arrow: Any, out: str) -> Any:
    """Open the growing file up to where the manifest says that it is certain."""
    folder = out + ".harvester"
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, "rb") as stream:
            certain = sum(part["bytes"] for part in orjson.loads(stream.read())["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: no manifest of harvester's; run the harvest again, which writes it anew") from error
    except FileNotFoundError as error:
        if os.path.isdir(folder):
            return arrow.BufferReader(b"")  # begun, and nothing is certain yet
        raise UsageError(f"{out}: not begun by harvester, or its folder {folder} is gone") from error
    if not certain:
        return arrow.BufferReader(b"")
    try:
        with arrow.memory_map(out) as whole:
            data = whole.read_buffer(certain)
    except FileNotFoundError as error:
        raise OutputError(f"{out} is gone; its folder {folder} is still there") from error
    if data.size < certain:
        raise OutputError(f"{out} has {data.size} bytes and had {certain}: somebody has cut it")
    return arrow.BufferReader(data)
