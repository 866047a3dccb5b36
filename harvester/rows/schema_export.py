"""The row's schema in the languages of its loaders: JSON Schema, a type for Spark, DDL for each database, Python.

All are derived from `schema.columns_of`. The format of the parts changes how they are read, never a column, with two
exceptions for the map `carried`: BigQuery reads it from NDJSON as JSON and from Parquet as a record of pairs, and
pyarrow does not read it from NDJSON at all.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from harvester.rows.encode import Format
from harvester.rows.row import SCHEMA_VERSION
from harvester.rows.schema import Column, Kind, Shape, columns_of, metric_columns

_TABLE, _FILES, _STAGE = "bitly_metrics", "bitly_parts", "bitly_lake"
"""Names in the output that a person may change."""


class Target(StrEnum):
    """The system that reads the schema."""

    JSON_SCHEMA = "json-schema"
    BIGQUERY = "bigquery"
    SPARK = "spark"
    DUCKDB = "duckdb"
    SNOWFLAKE = "snowflake"
    ATHENA = "athena"
    CLICKHOUSE = "clickhouse"
    PYARROW = "pyarrow"
    POLARS = "polars"


_TYPES: Mapping[Target, tuple[str, ...]] = {
    # In the order of Kind: text, integer, boolean, moment, metrics, map. {} stands for the members of a metric.
    Target.JSON_SCHEMA: ("string", "integer", "boolean", "string", "array", "object"),
    Target.BIGQUERY: ("STRING", "INTEGER", "BOOLEAN", "TIMESTAMP", "RECORD", "JSON"),
    Target.SPARK: ("string", "long", "boolean", "timestamp", "array", "map"),
    Target.DUCKDB: ("VARCHAR", "BIGINT", "BOOLEAN", "TIMESTAMPTZ", "STRUCT({})[]", "MAP(VARCHAR, VARCHAR)"),
    Target.SNOWFLAKE: ("VARCHAR", "NUMBER(19, 0)", "BOOLEAN", "TIMESTAMP_LTZ", "ARRAY", "OBJECT"),
    Target.ATHENA: ("string", "bigint", "boolean", "timestamp", "array<struct<{}>>", "map<string,string>"),
    Target.CLICKHOUSE: (
        "String",
        "Int64",
        "Bool",
        "DateTime('UTC')",
        "Array(Tuple({}))",
        "Map(String, Nullable(String))",
    ),
    Target.PYARROW: (
        "pa.string()",
        "pa.int64()",
        "pa.bool_()",
        'pa.timestamp("ms", "UTC")',
        'pa.list_(pa.field("element", pa.struct([{}]), nullable=False))',
        "pa.map_(pa.string(), pa.string())",
    ),
    Target.POLARS: (
        "pl.String",
        "pl.Int64",
        "pl.Boolean",
        'pl.Datetime("ms", "UTC")',
        "pl.List(pl.Struct({{{}}}))",
        "pl.Map(pl.String, pl.String)",
    ),
}

_MEMBERS = {
    Target.ATHENA: "{name}:{type}",
    Target.PYARROW: 'pa.field("{name}", {type}, nullable={nullable})',
    Target.POLARS: '"{name}": {type}',
}
"""A member of a metric; for the other databases name and type."""


class Rows(NamedTuple):
    """The rows that a schema is for."""

    shape: Shape
    format: Format
    facet: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of a row, in order."""
        return columns_of(self.shape, self.facet)


def schema_for(target: Target, rows: Rows) -> str:
    """Return the content of a schema file for a target, without the last line feed."""
    match target:
        case Target.JSON_SCHEMA:
            return _json(_json_schema(rows))
        case Target.BIGQUERY:
            return _json([_bigquery_field(column, rows) for column in rows.columns])
        case Target.SPARK:
            return _json(_spark_struct(rows.columns, rows.facet))
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


def _type(target: Target, kind: Kind) -> str:
    return dict(zip(Kind, _TYPES[target], strict=True))[kind]


# --- JSON -----------------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _json_schema(rows: Rows) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:harvester:row:{rows.facet}:{rows.shape}:{SCHEMA_VERSION}",
        "title": f"A {rows.shape} row of harvester's facet {rows.facet}, version {SCHEMA_VERSION}",
        **_json_object(rows.columns, rows.facet),
    }


def _json_object(columns: tuple[Column, ...], facet: str) -> dict[str, Any]:
    """Return the JSON Schema of an object. Further keys are valid, because later versions add columns."""
    return {
        "type": "object",
        "properties": {column.name: _json_property(column, facet) for column in columns},
        "required": [column.name for column in columns],
        "additionalProperties": True,
    }


def _json_property(column: Column, facet: str) -> dict[str, Any]:
    kind = _type(Target.JSON_SCHEMA, column.kind)
    schema: dict[str, Any] = {"description": column.means, "type": [kind, "null"] if column.nullable else kind}
    if column.kind is Kind.MOMENT:
        schema |= {"format": "date-time", "pattern": "Z$"}
    if column.kind is Kind.METRICS:
        schema["items"] = _json_object(metric_columns(facet), facet)
    if column.kind is Kind.MAP:
        schema["additionalProperties"] = {"type": [_type(Target.JSON_SCHEMA, Kind.TEXT), "null"]}
    return schema


_KEY_VALUE = Column("key", Kind.TEXT, "the column's name"), Column("value", Kind.TEXT, "its text", nullable=True)


def _bigquery_field(column: Column, rows: Rows) -> dict[str, Any]:
    """Return the definition of a column: https://cloud.google.com/bigquery/docs/schemas#creating_a_JSON_schema_file."""
    mode = "REPEATED" if column.kind is Kind.METRICS else "NULLABLE" if column.nullable else "REQUIRED"
    kind, fields = _type(Target.BIGQUERY, column.kind), list[dict[str, Any]]()
    if column.kind is Kind.METRICS:
        fields = [_bigquery_field(each, rows) for each in metric_columns(rows.facet)]
    elif column.kind is Kind.MAP and rows.format is Format.PARQUET:
        # https://cloud.google.com/bigquery/docs/reference/rest/v2/tables#ParquetOptions, mapTargetType
        pairs = [_bigquery_field(each, rows) for each in _KEY_VALUE]
        kind, fields = "RECORD", [{"name": "key_value", "type": "RECORD", "mode": "REPEATED", "fields": pairs}]
    members = {"fields": fields} if fields else {}
    return {"name": column.name, "type": kind, "mode": mode, "description": column.means, **members}


def _spark_struct(columns: tuple[Column, ...], facet: str) -> dict[str, Any]:
    """Return a struct in the form that StructType.fromJson reads."""
    return {"type": "struct", "fields": [_spark_field(column, facet) for column in columns]}


def _spark_field(column: Column, facet: str) -> dict[str, Any]:
    kind: Any = _type(Target.SPARK, column.kind)
    if column.kind is Kind.METRICS:
        kind = {"type": kind, "elementType": _spark_struct(metric_columns(facet), facet), "containsNull": False}
    if column.kind is Kind.MAP:
        text = _type(Target.SPARK, Kind.TEXT)
        kind = {"type": kind, "keyType": text, "valueType": text, "valueContainsNull": True}
    return {"name": column.name, "type": kind, "nullable": column.nullable, "metadata": {"comment": column.means}}


# --- SQL ------------------------------------------------------------------------------------------------------------


_COLUMN_LINES = {
    Target.DUCKDB: "    {name} {type}{not_null}{comma}  -- {means}",
    Target.SNOWFLAKE: "    {name} {type}{not_null} COMMENT '{quoted}'{comma}",
    Target.ATHENA: '    `{name}` {type} COMMENT "{means}"{comma}',  # Athena has no NOT NULL
    Target.CLICKHOUSE: "    {name} {type} COMMENT '{quoted}'{comma}",
    Target.PYARROW: '        pa.field("{name}", {type}, nullable={nullable}),  # {means}',
    Target.POLARS: '    "{name}": {type},  # {means}',
}
"""A column's line in CREATE TABLE or in Python. quoted: its meaning with single quotes doubled."""


def _full_type(target: Target, column: Column, facet: str) -> str:
    """Return a column's type; that of metrics includes the type of each member."""
    member = _MEMBERS.get(target, "{name} {type}")
    members = ", ".join(
        member.format(name=each.name, type=_full_type(target, each, facet), nullable=each.nullable)
        for each in (metric_columns(facet) if column.kind is Kind.METRICS else ())
    )
    full = _type(target, column.kind).format(members)
    # ClickHouse has no null in place of a map: it reads an empty one.
    may_be_null = column.nullable and column.kind is not Kind.MAP
    return f"Nullable({full})" if target is Target.CLICKHOUSE and may_be_null else full


def _column_lines(target: Target, rows: Rows) -> str:
    columns = rows.columns
    return "\n".join(
        _COLUMN_LINES[target].format(
            name=column.name,
            type=_full_type(target, column, rows.facet),
            nullable=column.nullable,
            not_null="" if column.nullable else " NOT NULL",
            means=column.means,
            quoted=column.means.replace("'", "''"),
            comma="," if column is not columns[-1] else "",
        )
        for column in columns
    )


def _create_table(target: Target, rows: Rows, note: str) -> str:
    """Return the file's first line, a comment that ends in the note, and CREATE TABLE up to its last parenthesis."""
    external = "EXTERNAL " if target is Target.ATHENA else ""
    return f"""-- {_title(rows)}, in parts of --format {rows.format}: {note}
CREATE {external}TABLE IF NOT EXISTS {_TABLE} (
{_column_lines(target, rows)}
)"""


def _duckdb(rows: Rows) -> str:
    """Return a table, and a macro that reads files with its column types, which DuckDB would have to guess."""
    columns = rows.columns
    if rows.format is Format.PARQUET:
        source = "read_parquet(files, union_by_name = true)"
    else:
        types = ",\n".join(
            f"    {column.name}: '{_full_type(Target.DUCKDB, column, rows.facet)}'" for column in columns
        )
        source = f"read_json(files, format = 'newline_delimited', columns = {{\n{types}\n}})"
    names = ",\n    ".join(column.name for column in columns)  # not *: a folder such as dt=2026-11-23 adds a column
    return f"""{_create_table(Target.DUCKDB, rows, "DuckDB, from 1.4 on")};

-- The rows of files: FROM {_FILES}('lake/{rows.facet}/dt=*/part-*.{rows.format}')
CREATE OR REPLACE MACRO {_FILES}(files) AS TABLE
SELECT
    {names}
FROM {source};"""  # noqa: S608 - printed, and made of constants


_SNOWFLAKE_FILE_FORMATS = {
    Format.NDJSON: "TYPE = JSON COMPRESSION = NONE",
    Format.NDJSON_GZ: "TYPE = JSON COMPRESSION = GZIP",
    Format.NDJSON_ZST: "TYPE = JSON COMPRESSION = ZSTD",
    # Without logical types a timestamp is a number; without this scanner a list contains Parquet's internal groups.
    Format.PARQUET: "TYPE = PARQUET USE_LOGICAL_TYPE = TRUE USE_VECTORIZED_SCANNER = TRUE",
}


def _snowflake(rows: Rows) -> str:
    return f"""{_create_table(Target.SNOWFLAKE, rows, "Snowflake; the stage is yours to make")};

CREATE OR REPLACE FILE FORMAT {_FILES} {_SNOWFLAKE_FILE_FORMATS[rows.format]};

-- What was loaded within 64 days is not loaded again.
COPY INTO {_TABLE}
FROM @{_STAGE}
PATTERN = '(.*/)?part-[0-9a-f]+-[0-9]+[.]{rows.format.replace(".", "[.]")}'
FILE_FORMAT = (FORMAT_NAME = '{_FILES}')
MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE;"""


# Both read gzip and zstd by the files' endings: https://docs.aws.amazon.com/athena/latest/ug/compression-formats.html.
_ATHENA_LINES = """ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'
WITH SERDEPROPERTIES ("timestamp.formats" = "yyyy-MM-dd'T'HH:mm:ss'Z'")
STORED AS TEXTFILE"""


def _athena(rows: Rows) -> str:
    return f"""{_create_table(Target.ATHENA, rows, "Athena; BUCKET is yours to name")}
PARTITIONED BY (`dt` string COMMENT "of the folder, dt=2026-11-23")
{"STORED AS PARQUET" if rows.format is Format.PARQUET else _ATHENA_LINES}
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
    lines = _column_lines(Target.PYARROW, rows)
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
{_column_lines(Target.POLARS, rows)}
}}"""
