"""The row's schema in the languages of its loaders: JSON Schema, a type for Spark, DDL for each database, Python.

All are derived from `schema.columns_of`. The format of the parts changes how they are read, never a column, with two
exceptions for the map `carried`: BigQuery reads it from NDJSON as JSON and from Parquet as a record of pairs, and
pyarrow does not read it from NDJSON at all.
"""

import re
from typing import Any, NamedTuple

from harvester.rows.column_types import (
    Target,
    as_json,
    bigquery_field,
    column_lines,
    full_type,
    json_object,
    spark_struct,
)
from harvester.rows.encode import Format
from harvester.rows.row import SCHEMA_VERSION
from harvester.rows.schema import Column, Kind, Shape, columns_of, metric_columns

_TABLE, _FILES, _STAGE = "bitly_metrics", "bitly_parts", "bitly_lake"
"""Names in the output that a person may change."""


class Rows(NamedTuple):
    """The rows that a schema is for."""

    shape: Shape
    format: Format
    facet: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of a row, in order."""
        return columns_of(self.shape, self.facet)

    @property
    def metrics(self) -> tuple[Column, ...]:
        """Of a metric, in order."""
        return metric_columns(self.facet)


def schema_for(target: Target, rows: Rows) -> str:
    """Return the content of a schema file for a target, without the last line feed."""
    match target:
        case Target.JSON_SCHEMA:
            return as_json(_json_schema(rows))
        case Target.BIGQUERY:
            return as_json([bigquery_field(column, rows.metrics, rows.format) for column in rows.columns])
        case Target.SPARK:
            return as_json(spark_struct(rows.columns, rows.metrics))
        case Target.DUCKDB:
            return _duckdb(rows)
        case Target.SNOWFLAKE:
            return _snowflake(rows)
        case Target.ATHENA:
            return _athena(rows)
        case Target.CLICKHOUSE:
            return _clickhouse(rows)
        case Target.PYARROW:
            return _pyarrow(rows)
        case Target.POLARS:
            return _polars(rows)


def _title(rows: Rows) -> str:
    return f"harvester's {rows.shape} rows of {rows.facet}, schema version {SCHEMA_VERSION}"


# --- JSON -----------------------------------------------------------------------------------------------------------


def _json_schema(rows: Rows) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:harvester:row:{rows.facet}:{rows.shape}:{SCHEMA_VERSION}",
        "title": f"A {rows.shape} row of harvester's facet {rows.facet}, version {SCHEMA_VERSION}",
        **json_object(rows.columns, rows.metrics),
    }


# --- SQL ------------------------------------------------------------------------------------------------------------


def _create_table(target: Target, rows: Rows, note: str) -> str:
    """Return the file's first line, a comment that ends in the note, and CREATE TABLE up to its last parenthesis."""
    external = "EXTERNAL " if target is Target.ATHENA else ""
    return f"""-- {_title(rows)}, in parts of --format {rows.format}: {note}
CREATE {external}TABLE IF NOT EXISTS {_TABLE} (
{column_lines(target, rows.columns, rows.metrics)}
)"""


def _duckdb(rows: Rows) -> str:
    """Return a table, and a macro that reads files with its column types, which DuckDB would have to guess."""
    columns = rows.columns
    if rows.format is Format.PARQUET:
        source = "read_parquet(files, union_by_name = true)"
    else:
        types = ",\n".join(
            f"    {column.name}: '{full_type(Target.DUCKDB, column, rows.metrics)}'" for column in columns
        )
        source = f"read_json(files, format = 'newline_delimited', columns = {{\n{types}\n}})"
    names = ",\n    ".join(column.name for column in columns)  # not *: a folder such as dt=2026-11-23 adds a column
    return f"""{_create_table(Target.DUCKDB, rows, "DuckDB, from 1.4 on")};

-- The rows of files: FROM {_FILES}('lake/{rows.facet}/dt=*/part-*.{rows.format}')
CREATE OR REPLACE MACRO {_FILES}(files) AS TABLE
SELECT
    {names}
FROM {source};"""  # noqa: S608 - printed, and made of constants


SNOWFLAKE_FILES = {
    Format.NDJSON: "TYPE = JSON COMPRESSION = NONE",
    Format.NDJSON_GZ: "TYPE = JSON COMPRESSION = GZIP",
    Format.NDJSON_ZST: "TYPE = JSON COMPRESSION = ZSTD",
    # Without logical types a timestamp is a number; without this scanner a list contains Parquet's internal groups.
    Format.PARQUET: "TYPE = PARQUET USE_LOGICAL_TYPE = TRUE USE_VECTORIZED_SCANNER = TRUE",
}


def _snowflake(rows: Rows) -> str:
    return f"""{_create_table(Target.SNOWFLAKE, rows, "Snowflake; the stage is yours to make")};

CREATE OR REPLACE FILE FORMAT {_FILES} {SNOWFLAKE_FILES[rows.format]};

-- What was loaded within 64 days is not loaded again.
COPY INTO {_TABLE}
FROM @{_STAGE}
PATTERN = '(.*/)?part-[0-9a-f]+-[0-9]+[.]{rows.format.replace(".", "[.]")}'
FILE_FORMAT = (FORMAT_NAME = '{_FILES}')
MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE;"""


# Both read gzip and zstd by the files' endings: https://docs.aws.amazon.com/athena/latest/ug/compression-formats.html.
ATHENA_LINES = """ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'
WITH SERDEPROPERTIES ("timestamp.formats" = "yyyy-MM-dd'T'HH:mm:ss'Z'")
STORED AS TEXTFILE"""


def _athena(rows: Rows) -> str:
    return f"""{_create_table(Target.ATHENA, rows, "Athena; BUCKET is yours to name")}
PARTITIONED BY (`dt` string COMMENT "of the folder, dt=2026-11-23")
{"STORED AS PARQUET" if rows.format is Format.PARQUET else ATHENA_LINES}
LOCATION 's3://BUCKET/lake/{rows.facet}/'
TBLPROPERTIES (
    'projection.enabled' = 'true',
    'projection.dt.type' = 'date',
    'projection.dt.format' = 'yyyy-MM-dd',
    'projection.dt.range' = '2026-01-01,NOW+1DAYS'
);"""


def _clickhouse(rows: Rows) -> str:
    key = "record_id" if rows.shape is Shape.NESTED else "call_id, record_id"
    return f"""{_create_table(Target.CLICKHOUSE, rows, "ClickHouse")}
ENGINE = MergeTree
ORDER BY ({key});

-- Parts are loaded into this table first.
CREATE TABLE IF NOT EXISTS {_FILES} AS {_TABLE};"""


# --- Python ---------------------------------------------------------------------------------------------------------


def _pyarrow(rows: Rows) -> str:
    """Return a module whose `schema` equals `encode.arrow_schema`; for NDJSON without the map."""
    lines = column_lines(Target.PYARROW, rows.columns, rows.metrics)
    if rows.format is not Format.PARQUET:
        names = "|".join(column.name for column in rows.columns if column.kind is Kind.MAP)
        unread = r"        # pyarrow does not read this from JSON, harvester.read does:\n        # \1"
        lines = re.sub(rf'^ +(pa\.field\("(?:{names})".*)$', unread, lines, flags=re.MULTILINE)
    return f"""# {_title(rows)}, in parts of --format {rows.format}: a pyarrow.Schema
import pyarrow as pa

schema = pa.schema(
    [
{lines}
    ]
)"""


def _polars(rows: Rows) -> str:
    return f"""# {_title(rows)}: for the parameter schema of Polars' readers
import polars as pl

schema = {{
{column_lines(Target.POLARS, rows.columns, rows.metrics)}
}}"""
