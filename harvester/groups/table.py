"""The table of links: its columns, its rows as NDJSON or Parquet, and its schema for each loader.

A row describes a link as Bitly has it now, where a metrics row says what was clicked: `id` and `custom_bitlinks` are
written as the metrics' `bitlink` is.
"""

import gzip
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import orjson

from harvester.bitly.groups import GroupLink
from harvester.extras import import_pyarrow
from harvester.jsonlines import one_line
from harvester.rows.encode import HashingWriter

LinksFormat = Literal["ndjson", "ndjson.gz", "parquet"]
"""The file format of the table's parts; the ending of their names."""
_GZIP_LEVEL = 6
_GROUP_ROWS = 10_000
_TABLE = "bitly_links"


class _Kind(StrEnum):
    """The type of a column. texts: a list of text. moment: UTC, written with a final Z in NDJSON."""

    TEXT = "text"
    BOOLEAN = "boolean"
    MOMENT = "moment"
    TEXTS = "texts"


class _Column(NamedTuple):
    name: str
    kind: _Kind
    means: str
    nullable: bool = False


COLUMNS = (
    _Column("id", _Kind.TEXT, "domain/back-half: the key, and the bitlink of metrics rows"),
    _Column("link", _Kind.TEXT, "the short link as a URL", nullable=True),
    _Column("long_url", _Kind.TEXT, "where it leads", nullable=True),
    _Column("title", _Kind.TEXT, "its title at Bitly", nullable=True),
    _Column("tags", _Kind.TEXTS, "its tags at Bitly"),
    _Column("created_at", _Kind.MOMENT, "when it was made", nullable=True),
    _Column("archived", _Kind.BOOLEAN, "whether it is archived", nullable=True),
    _Column("custom_bitlinks", _Kind.TEXTS, "its custom bitlinks as domain/back-half, which are counted apart"),
    _Column("group", _Kind.TEXT, "guid of its group"),
)
"""The columns in order; those of GroupLink."""


def row(link: GroupLink) -> bytes:
    """Return a link's row as NDJSON, with its line feed."""
    return one_line(link._asdict()) + b"\n"


def write_rows(links: Iterable[GroupLink], target: HashingWriter, format_: LinksFormat) -> int:
    """Write a part and return its rows; the same links give the same bytes.

    Raises:
        UsageError: Parquet needs a library.
    """
    if format_ == "parquet":
        return _write_parquet(links, target)
    count = 0
    stream = cast("BinaryIO", target)
    if format_ == "ndjson":
        for count, link in enumerate(links, 1):  # noqa: B007 - the number of rows
            stream.write(row(link))
        return count
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=stream, mtime=0) as packed:
        for count, link in enumerate(links, 1):  # noqa: B007 - the number of rows
            packed.write(row(link))
    return count


def _write_parquet(links: Iterable[GroupLink], target: HashingWriter) -> int:
    arrow = import_pyarrow("parquet needs a library", option="--format")
    schema, count = _arrow_schema(arrow), 0
    with arrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in _in_groups(links):
            lines = b"".join(map(row, group))
            table = arrow.json.read_json(
                arrow.BufferReader(lines),
                read_options=arrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                parse_options=arrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
            )
            writer.write_table(table.cast(schema), row_group_size=table.num_rows)
            count += len(group)
    return count


def _in_groups(links: Iterable[GroupLink]) -> Iterator[list[GroupLink]]:
    rest = iter(links)
    while group := list(islice(rest, _GROUP_ROWS)):
        yield group


def _arrow_schema(arrow: Any) -> Any:
    types = {
        _Kind.TEXT: arrow.string(),
        _Kind.BOOLEAN: arrow.bool_(),
        _Kind.MOMENT: arrow.timestamp("ms", "UTC"),
        _Kind.TEXTS: arrow.list_(arrow.field("element", arrow.string(), nullable=False)),
    }
    return arrow.schema([arrow.field(each.name, types[each.kind], nullable=each.nullable) for each in COLUMNS])


# --- its schema -----------------------------------------------------------------------------------------------------

_TYPES = {
    # In the order of _Kind: text, boolean, moment, texts.
    "bigquery": ("STRING", "BOOLEAN", "TIMESTAMP", "STRING"),
    "spark": ("string", "boolean", "timestamp", "array"),
    "duckdb": ("VARCHAR", "BOOLEAN", "TIMESTAMPTZ", "VARCHAR[]"),
    "snowflake": ("VARCHAR", "BOOLEAN", "TIMESTAMP_LTZ", "ARRAY"),
    "athena": ("string", "boolean", "timestamp", "array<string>"),
    "clickhouse": ("String", "Bool", "DateTime('UTC')", "Array(String)"),
    "pyarrow": (
        "pa.string()",
        "pa.bool_()",
        'pa.timestamp("ms", "UTC")',
        'pa.list_(pa.field("element", pa.string(), nullable=False))',
    ),
    "polars": ("pl.String", "pl.Boolean", 'pl.Datetime("ms", "UTC")', "pl.List(pl.String)"),
}
_COLUMN_LINES = {
    "duckdb": '    "{name}" {type}{not_null}{comma}  -- {means}',
    "snowflake": "    \"{upper}\" {type}{not_null} COMMENT '{means}'{comma}",
    "athena": '    `{name}` {type} COMMENT "{means}"{comma}',
    "clickhouse": "    `{name}` {type} COMMENT '{means}'{comma}",
    "pyarrow": '        pa.field("{name}", {type}, nullable={nullable}),  # {means}',
    "polars": '    "{name}": {type},  # {means}',
}
"""A column's line. Its name is quoted: `group` is a word of SQL."""


def schema_for(target: str, format_: LinksFormat) -> str:
    """Return the content of a schema file for a target of `harvester schema`, without the last line feed."""
    if target == "json-schema":
        return _json(_json_schema())
    if target == "bigquery":
        return _json([_bigquery_field(column) for column in COLUMNS])
    if target == "spark":
        return _json({"type": "struct", "fields": [_spark_field(column) for column in COLUMNS]})
    return _HEADS[target].format(table=_TABLE, format=format_) + _lines(target) + _tail(target, format_)


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _json_schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:harvester:link:1",
        "title": "A link of a group",
        "type": "object",
        "properties": {column.name: _json_property(column) for column in COLUMNS},
        "required": [column.name for column in COLUMNS],
        "additionalProperties": True,
    }


def _json_property(column: _Column) -> dict[str, Any]:
    kinds = dict(zip(_Kind, ("string", "boolean", "string", "array"), strict=True))
    kind = kinds[column.kind]
    found: dict[str, Any] = {"description": column.means, "type": [kind, "null"] if column.nullable else kind}
    if column.kind is _Kind.MOMENT:
        found |= {"format": "date-time", "pattern": "Z$"}
    if column.kind is _Kind.TEXTS:
        found["items"] = {"type": "string"}
    return found


def _type(target: str, column: _Column) -> str:
    found = dict(zip(_Kind, _TYPES[target], strict=True))[column.kind]
    return f"Nullable({found})" if target == "clickhouse" and column.nullable else found


def _bigquery_field(column: _Column) -> dict[str, Any]:
    mode = "REPEATED" if column.kind is _Kind.TEXTS else "NULLABLE" if column.nullable else "REQUIRED"
    return {"name": column.name, "type": _type("bigquery", column), "mode": mode, "description": column.means}


def _spark_field(column: _Column) -> dict[str, Any]:
    kind: Any = _type("spark", column)
    if column.kind is _Kind.TEXTS:
        kind = {"type": kind, "elementType": "string", "containsNull": False}
    return {"name": column.name, "type": kind, "nullable": column.nullable, "metadata": {"comment": column.means}}


def _lines(target: str) -> str:
    return "\n".join(
        _COLUMN_LINES[target].format(
            name=column.name,
            upper=column.name.upper(),
            type=_type(target, column),
            nullable=column.nullable,
            not_null="" if column.nullable else " NOT NULL",
            means=column.means,
            comma="," if column is not COLUMNS[-1] else "",
        )
        for column in COLUMNS
    )


_HEADS = {
    "duckdb": "-- the links of groups, in parts of --format {format}: DuckDB, from 1.4 on\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    "snowflake": "-- the links of groups, in parts of --format {format}: Snowflake; the stage is yours to make\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    "athena": "-- the links of groups, in parts of --format {format}: Athena; BUCKET is yours to name\n"
    "CREATE EXTERNAL TABLE IF NOT EXISTS {table} (\n",
    "clickhouse": "-- the links of groups, in parts of --format {format}: ClickHouse\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    "pyarrow": "# the links of groups: a pyarrow.Schema\nimport pyarrow as pa\n\nschema = pa.schema(\n    [\n",
    "polars": "# the links of groups: for the parameter schema of Polars' readers\n"
    "import polars as pl\n\nschema = {{\n",
}
_SNOWFLAKE_FILES = {
    "ndjson": "TYPE = JSON COMPRESSION = NONE",
    "ndjson.gz": "TYPE = JSON COMPRESSION = GZIP",
    "parquet": "TYPE = PARQUET USE_LOGICAL_TYPE = TRUE USE_VECTORIZED_SCANNER = TRUE",
}


def _tail(target: str, format_: LinksFormat) -> str:
    """Return what follows the columns: for a database, how parts are read into the table."""
    match target:
        case "duckdb":
            names = ", ".join(f'"{column.name}"' for column in COLUMNS)
            source = "read_parquet(files, union_by_name = true)"
            if format_ != "parquet":
                types = ", ".join(f"\"{column.name}\": '{_type(target, column)}'" for column in COLUMNS)
                source = f"read_json(files, format = 'newline_delimited', columns = {{{types}}})"
            return f"""
);

-- The rows of files: FROM {_TABLE}_parts('lake/links/part-*.{format_}')
CREATE OR REPLACE MACRO {_TABLE}_parts(files) AS TABLE
SELECT
    {names}
FROM {source};"""  # noqa: S608 - printed, and made of constants
        case "snowflake":
            return f"""
);

CREATE OR REPLACE FILE FORMAT {_TABLE}_parts {_SNOWFLAKE_FILES[format_]};

COPY INTO {_TABLE}
FROM @bitly_lake
PATTERN = '(.*/)?part-[0-9a-f]+-[0-9]+[.]{format_.replace(".", "[.]")}'
FILE_FORMAT = (FORMAT_NAME = '{_TABLE}_parts')
MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE;"""
        case "athena":
            lines = (
                "ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'\n"
                "WITH SERDEPROPERTIES (\"timestamp.formats\" = \"yyyy-MM-dd'T'HH:mm:ss'Z'\")\nSTORED AS TEXTFILE"
            )
            stored = "STORED AS PARQUET" if format_ == "parquet" else lines
            return f"\n)\n{stored}\nLOCATION 's3://BUCKET/lake/links/';"
        case "clickhouse":
            return "\n)\nENGINE = ReplacingMergeTree\nORDER BY (id);"
        case "pyarrow":
            return "\n    ]\n)"
        case _:
            return "\n}"
