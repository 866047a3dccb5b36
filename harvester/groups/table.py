"""The table of links: its columns, its rows as NDJSON or Parquet, and its schema for each loader.

A row describes a link as Bitly has it now, where a metrics row says what was clicked: `id` and `custom_bitlinks` are
written as the metrics' `bitlink` is.
"""

import gzip
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, Literal, cast

from harvester.bitly.groups import GroupLink
from harvester.extras import import_pyarrow
from harvester.jsonlines import one_line
from harvester.rows.column_types import (
    Target,
    as_json,
    bigquery_field,
    column_lines,
    full_type,
    json_object,
    quoted_name,
    spark_struct,
)
from harvester.rows.encode import Format, HashingWriter, arrow_schema_of
from harvester.rows.schema import Column, Kind
from harvester.rows.schema_export import ATHENA_LINES, SNOWFLAKE_FILES

LinksFormat = Literal["ndjson", "ndjson.gz", "parquet"]
"""The file format of the table's parts; the ending of their names."""
_GZIP_LEVEL = 6
_ROWS_A_ROW_GROUP = 10_000
_TABLE = "bitly_links"


COLUMNS = (
    Column("id", Kind.TEXT, "domain/back-half: the key, and the bitlink of metrics rows"),
    Column("link", Kind.TEXT, "the short link as a URL", nullable=True),
    Column("long_url", Kind.TEXT, "where it leads", nullable=True),
    Column("title", Kind.TEXT, "its title at Bitly", nullable=True),
    Column("tags", Kind.TEXTS, "its tags at Bitly"),
    Column("created_at", Kind.MOMENT, "when it was made", nullable=True),
    Column("archived", Kind.BOOLEAN, "whether it is archived", nullable=True),
    Column("custom_bitlinks", Kind.TEXTS, "its custom bitlinks as domain/back-half, which are counted apart"),
    Column("group", Kind.TEXT, "guid of its group"),
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
    schema, count = arrow_schema_of(COLUMNS, ()), 0
    with arrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in _in_row_groups(links):
            lines = b"".join(map(row, group))
            table = arrow.json.read_json(
                arrow.BufferReader(lines),
                read_options=arrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                parse_options=arrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
            )
            writer.write_table(table.cast(schema), row_group_size=table.num_rows)
            count += len(group)
    return count


def _in_row_groups(links: Iterable[GroupLink]) -> Iterator[list[GroupLink]]:
    rest = iter(links)
    while group := list(islice(rest, _ROWS_A_ROW_GROUP)):
        yield group


# --- its schema -----------------------------------------------------------------------------------------------------


def schema_for(target: Target, format_: LinksFormat) -> str:
    """Return the content of a schema file for a target of `harvester schema`, without the last line feed."""
    match target:
        case Target.JSON_SCHEMA:
            return as_json(_JSON_SCHEMA | json_object(COLUMNS, ()))
        case Target.BIGQUERY:
            return as_json([bigquery_field(column, (), format_) for column in COLUMNS])
        case Target.SPARK:
            return as_json(spark_struct(COLUMNS, ()))
        case _:
            head = _HEADS[target].format(table=_TABLE, format=format_)
            return head + column_lines(target, COLUMNS, ()) + _tail(target, format_)


_JSON_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:harvester:link:1",
    "title": "A link of a group",
}
_HEADS = {
    Target.DUCKDB: "-- the links of groups, in parts of --format {format}: DuckDB, from 1.4 on\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    Target.SNOWFLAKE: "-- the links of groups, in parts of --format {format}: Snowflake; the stage is yours to make\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    Target.ATHENA: "-- the links of groups, in parts of --format {format}: Athena; BUCKET is yours to name\n"
    "CREATE EXTERNAL TABLE IF NOT EXISTS {table} (\n",
    Target.CLICKHOUSE: "-- the links of groups, in parts of --format {format}: ClickHouse\n"
    "CREATE TABLE IF NOT EXISTS {table} (\n",
    Target.PYARROW: "# the links of groups: a pyarrow.Schema\nimport pyarrow as pa\n\nschema = pa.schema(\n    [\n",
    Target.POLARS: "# the links of groups: for the parameter schema of Polars' readers\n"
    "import polars as pl\n\nschema = {{\n",
}


def _tail(target: Target, format_: LinksFormat) -> str:
    """Return what follows the columns: for a database, how parts are read into the table."""
    match target:
        case Target.DUCKDB:
            return _duckdb_tail(format_)
        case Target.SNOWFLAKE:
            return f"""
);

CREATE OR REPLACE FILE FORMAT {_TABLE}_parts {SNOWFLAKE_FILES[Format(format_)]};

COPY INTO {_TABLE}
FROM @bitly_lake
PATTERN = '(.*/)?part-[0-9a-f]+-[0-9]+[.]{format_.replace(".", "[.]")}'
FILE_FORMAT = (FORMAT_NAME = '{_TABLE}_parts')
MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE;"""
        case Target.ATHENA:
            stored = "STORED AS PARQUET" if format_ == "parquet" else ATHENA_LINES
            return f"\n)\n{stored}\nLOCATION 's3://BUCKET/lake/links/';"
        case Target.CLICKHOUSE:
            return "\n)\nENGINE = ReplacingMergeTree\nORDER BY (id);"
        case Target.PYARROW:
            return "\n    ]\n)"
        case _:
            return "\n}"


def _duckdb_tail(format_: LinksFormat) -> str:
    names = ", ".join(quoted_name(Target.DUCKDB, column.name) for column in COLUMNS)
    source = "read_parquet(files, union_by_name = true)"
    if format_ != "parquet":
        types = ", ".join(f"\"{column.name}\": '{full_type(Target.DUCKDB, column, ())}'" for column in COLUMNS)
        source = f"read_json(files, format = 'newline_delimited', columns = {{{types}}})"
    return f"""
);

-- The rows of files: FROM {_TABLE}_parts('lake/links/part-*.{format_}')
CREATE OR REPLACE MACRO {_TABLE}_parts(files) AS TABLE
SELECT
    {names}
FROM {source};"""  # noqa: S608 - printed, and made of constants
