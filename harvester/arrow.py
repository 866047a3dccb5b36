"""The published rows of an output as an Arrow table: a folder's parts, or the committed bytes of a growing file."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harvester.config.parsing import filled_path
from harvester.dataset.manifest import Manifest, parse
from harvester.dataset.part_publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.extras import import_pyarrow
from harvester.rows.encode import Format, arrow_schema, table_of
from harvester.rows.schema import Shape
from harvester.storage.location import BESIDE, GROWING_ENDINGS, MANIFEST, followed, is_url, normal
from harvester.storage.object_store import ObjectStorage, open_store
from harvester.storage.storage import LocalStorage, Storage

if TYPE_CHECKING:
    import pyarrow as pa

_COMPRESSION = {Format.NDJSON: None, Format.NDJSON_GZ: "gzip", Format.NDJSON_ZST: "zstd"}
_UNKNOWN = (Shape.NESTED, "referrers")
"""The rows of an output whose manifest is not written yet."""
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

    columns: some of a row's keys; by default all, in the row's order. metrics is a list of structs with the facet's
    fields, unit_reference and fetched_at are timestamps in UTC. facet, unit_reference: fill {facet} and {dt} in out.

    Raises:
        UsageError: pyarrow is not installed, or harvester wrote nothing there. OutputError: the output is damaged.
    """
    if not isinstance(out, str | bytes | os.PathLike):
        raise UsageError(f"out: must be a path, not {type(out).__name__}")
    if isinstance(columns, str):
        raise UsageError(f'columns: must be a list, such as ["{columns}"]')
    moment = unit_reference.isoformat() if isinstance(unit_reference, datetime) else unit_reference
    arrow = import_pyarrow("harvester.read needs pyarrow", extra="arrow")
    path = filled_path("out", os.fsdecode(out), facet, moment)
    storage, growing = _located(path)
    try:
        manifest = _manifest_in(storage)
        schema = arrow_schema(Shape(manifest.shape), manifest.query["facet"]) if manifest else arrow_schema(*_UNKNOWN)
        chosen = schema.names if columns is None else list(columns)
        for name in chosen:
            if name not in schema.names:
                raise UsageError(f"columns: unknown column {name}; the columns are {', '.join(schema.names)}")
        tables = [_growing(arrow, path, manifest, schema)] if growing else _parts(arrow, storage, path, schema)
        wanted = arrow.schema([schema.field(name) for name in chosen])
        return arrow.concat_tables([wanted.empty_table(), *(table.select(chosen) for table in tables)])
    except PermissionError as error:
        raise OutputError(f"{error.filename or path}: {error.strerror}") from error
    except (arrow.ArrowInvalid, OSError) as error:
        raise OutputError(f"{path} contains something that is not a row: {error}") from error


def _located(path: str) -> tuple[Storage, bool]:
    """Return the storage of an output's manifest, and whether its rows are in a growing file."""
    if is_url(path):
        return open_store(normal(path)), False
    if os.path.isdir(path):
        return LocalStorage(path), False
    if path.lower().endswith(GROWING_ENDINGS):
        return LocalStorage(followed(path) + BESIDE), True
    raise UsageError(f"{path}: must be a folder, or a file that ends in .ndjson or .jsonl")


def _manifest_in(storage: Storage) -> Manifest | None:
    text, path = storage.get(MANIFEST), storage.path(MANIFEST)
    if text is None:
        return None
    try:
        return parse(text, path)
    except UsageError as error:
        raise OutputError(f"{path}: not a harvester manifest; run the harvest again, which replaces it") from error


def _parts(arrow: Any, storage: Storage, path: str, schema: "pa.Schema") -> Iterator["pa.Table"]:
    """Yield the rows of each part."""
    names = storage.names()
    parts = [match for match in map(PART_NAME.fullmatch, names) if match]
    if not parts and MANIFEST not in names and "_harvester" not in names:
        raise UsageError(f"{path}: nothing here was written by harvester")
    for part in parts:
        with suppress(FileNotFoundError):  # a loader has taken it since the listing
            yield _part(arrow, storage, part[0], Format(part["format"]), schema)


def _part(arrow: Any, storage: Storage, name: str, format_: Format, schema: "pa.Schema") -> "pa.Table":
    source: Any = storage.path(name)  # a local file, which Arrow opens by itself
    if isinstance(storage, ObjectStorage):
        with storage.open(name) as stream:
            source = arrow.BufferReader(stream.read())
    if format_ is Format.PARQUET:
        return arrow.parquet.read_table(source, schema=schema)
    return _parsed(arrow, arrow.input_stream(source, compression=_COMPRESSION[format_]), schema)


def _growing(arrow: Any, path: str, manifest: Manifest | None, schema: "pa.Schema") -> "pa.Table":
    """Return the growing file's rows as far as the manifest counts them; the bytes behind may be half a row."""
    folder = followed(path) + BESIDE
    if manifest is None and not os.path.isdir(folder):
        raise UsageError(f"{path}: not started by harvester, or its folder {folder} is missing")
    committed = sum(part.bytes for part in manifest.parts) if manifest else 0
    if not committed:
        return schema.empty_table()
    try:
        with arrow.memory_map(path) as whole:
            data = whole.read_buffer(committed)
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing; its folder {folder} still exists") from error
    if data.size < committed:
        raise OutputError(f"{path} has {data.size} bytes, expected {committed}: it was truncated")
    return _parsed(arrow, arrow.BufferReader(data), schema)


def _parsed(arrow: Any, stream: Any, schema: "pa.Schema") -> "pa.Table":
    """Return the rows of a stream of NDJSON, which is closed."""
    with stream:
        data = stream.read_buffer()
    if not data.size:  # Arrow reports an empty file as damaged
        return schema.empty_table()
    return table_of(arrow, data, schema, arrow.json.ReadOptions(block_size=_BLOCK_BYTES), later_columns=True)
