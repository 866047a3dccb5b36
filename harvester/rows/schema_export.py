"""The row's schema in the languages of its loaders: JSON Schema, a type for Spark, DDL for each database.

All are derived from `schema.COLUMNS`. The format of the parts changes how they are read, never a column.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from harvester.rows.encode import Format
from harvester.rows.row import SCHEMA_VERSION
from harvester.rows.schema import COLUMNS, METRIC, Column, Kind, Shape

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


def schema_for(target: Target, shape: Shape, part_format: Format) -> str:
    """Return the content of a schema file for a target, without the last line feed."""
    return _PRINTERS[target](shape, part_format)


# --- JSON -----------------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


_JSON_TYPES: Mapping[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": "string"},
    Kind.INTEGER: {"type": "integer"},
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.MOMENT: {"type": "string", "format": "date-time", "pattern": "Z$"},
}


def _json_schema(shape: Shape, part_format: Format) -> str:  # noqa: ARG001 - rows of Parquet have the same keys
    return _json(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:harvester:row:{shape}:{SCHEMA_VERSION}",
            "title": f"A {shape} row of harvester's, version {SCHEMA_VERSION}",
            **_json_object(COLUMNS[shape]),
        }
    )


def _json_object(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return the JSON Schema of an object. Further keys are valid, because later versions add columns."""
    return {
        "type": "object",
        "properties": {column.name: _json_property(column) for column in columns},
        "required": [column.name for column in columns],
        "additionalProperties": True,
    }


def _json_property(column: Column) -> dict[str, Any]:
    if column.kind is Kind.METRICS:
        return {"description": column.means, "type": "array", "items": _json_object(METRIC)}
    kind = _JSON_TYPES[column.kind]
    types = {"type": [kind["type"], "null"]} if column.nullable else {}
    return {"description": column.means, **kind, **types}


_BIGQUERY_TYPES = {
    Kind.TEXT: "STRING",
    Kind.INTEGER: "INTEGER",
    Kind.BOOLEAN: "BOOLEAN",
    Kind.MOMENT: "TIMESTAMP",
    Kind.METRICS: "RECORD",
}


def _bigquery(shape: Shape, part_format: Format) -> str:  # noqa: ARG001 - a table is the same for all formats
    return _json([_bigquery_field(column) for column in COLUMNS[shape]])


def _bigquery_field(column: Column) -> dict[str, Any]:
    """Return the definition of a column: https://cloud.google.com/bigquery/docs/schemas#creating_a_JSON_schema_file."""
    mode = "REPEATED" if column.kind is Kind.METRICS else "NULLABLE" if column.nullable else "REQUIRED"
    fields = {"fields": [_bigquery_field(each) for each in METRIC]} if column.kind is Kind.METRICS else {}
    kind = _BIGQUERY_TYPES[column.kind]
    return {"name": column.name, "type": kind, "mode": mode, "description": column.means, **fields}


_SPARK_TYPES = {Kind.TEXT: "string", Kind.INTEGER: "long", Kind.BOOLEAN: "boolean", Kind.MOMENT: "timestamp"}


def _spark(shape: Shape, part_format: Format) -> str:  # noqa: ARG001 - Spark's readers take one type for all formats
    return _json(_spark_struct(COLUMNS[shape]))


def _spark_struct(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return a struct in the form that StructType.fromJson reads."""
    return {"type": "struct", "fields": [_spark_field(column) for column in columns]}


def _spark_field(column: Column) -> dict[str, Any]:
    kind: Any = _SPARK_TYPES.get(column.kind)
    if column.kind is Kind.METRICS:
        kind = {"type": "array", "elementType": _spark_struct(METRIC), "containsNull": False}
    return {"name": column.name, "type": kind, "nullable": column.nullable, "metadata": {"comment": column.means}}


# --- SQL ------------------------------------------------------------------------------------------------------------


class _Sql(NamedTuple):
    """The SQL dialect of a database, as format strings.

    types: by kind; {} in that of METRICS stands for the members. remark: a comment after a column's comma.
    """

    types: Mapping[Kind, str]
    member: str = "{} {}"
    column: str = "{} {}"
    not_null: str = " NOT NULL"
    comment: Callable[[str], str] = "".format
    remark: str = ""

    def type_of(self, column: Column) -> str:
        """Return a column's type; that of metrics includes the type of each member."""
        members = ", ".join(self.member.format(each.name, self.types[each.kind]) for each in METRIC)
        return self.types[column.kind].format(members)

    def columns(self, shape: Shape) -> str:
        """Return the lines between the parentheses of CREATE TABLE."""
        columns = COLUMNS[shape]
        lines = []
        for column in columns:
            null = "" if column.nullable else self.not_null
            comma = "," if column is not columns[-1] else ""
            definition = self.column.format(column.name, self.type_of(column)) + null + self.comment(column.means)
            lines.append(f"    {definition}{comma}{self.remark.format(column.means)}")
        return "\n".join(lines)


def _title(shape: Shape, part_format: Format, whom: str) -> str:
    return f"-- harvester's {shape} rows, schema version {SCHEMA_VERSION}, in parts of --format {part_format}: {whom}"


_DUCKDB = _Sql(
    {
        Kind.TEXT: "VARCHAR",
        Kind.INTEGER: "BIGINT",
        Kind.BOOLEAN: "BOOLEAN",
        Kind.MOMENT: "TIMESTAMPTZ",
        Kind.METRICS: "STRUCT({})[]",
    },
    remark="  -- {}",
)


def _duckdb(shape: Shape, part_format: Format) -> str:
    """Return a table, and a macro that reads files with its column types, which DuckDB would have to guess."""
    columns = COLUMNS[shape]
    if part_format is Format.PARQUET:
        source = "read_parquet(files, union_by_name = true)"
    else:
        types = ",\n".join(f"    {column.name}: '{_DUCKDB.type_of(column)}'" for column in columns)
        source = f"read_json(files, format = 'newline_delimited', columns = {{\n{types}\n}})"
    names = ",\n    ".join(column.name for column in columns)  # not *: a folder such as dt=2026-11-23 adds a column
    return f"""{_title(shape, part_format, "DuckDB, from 1.4 on")}
CREATE TABLE IF NOT EXISTS {_TABLE} (
{_DUCKDB.columns(shape)}
);

-- The rows of files: FROM {_FILES}('lake/referrers/dt=*/part-*.{part_format}')
CREATE OR REPLACE MACRO {_FILES}(files) AS TABLE
SELECT
    {names}
FROM {source};"""  # noqa: S608 - printed, and made of constants


_SNOWFLAKE = _Sql(
    {
        Kind.TEXT: "VARCHAR",
        Kind.INTEGER: "NUMBER(19, 0)",
        Kind.BOOLEAN: "BOOLEAN",
        Kind.MOMENT: "TIMESTAMP_LTZ",
        Kind.METRICS: "ARRAY",
    },
    comment=lambda text: f" COMMENT {_quoted(text)}",
)
_SNOWFLAKE_FILE_FORMATS = {
    Format.NDJSON: "TYPE = JSON COMPRESSION = NONE",
    Format.GZIP: "TYPE = JSON COMPRESSION = GZIP",
    Format.ZSTD: "TYPE = JSON COMPRESSION = ZSTD",
    # Without logical types a timestamp is a number; without this scanner a list contains Parquet's internal groups.
    Format.PARQUET: "TYPE = PARQUET USE_LOGICAL_TYPE = TRUE USE_VECTORIZED_SCANNER = TRUE",
}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _snowflake(shape: Shape, part_format: Format) -> str:
    return f"""{_title(shape, part_format, "Snowflake; the stage is yours to make")}
CREATE TABLE IF NOT EXISTS {_TABLE} (
{_SNOWFLAKE.columns(shape)}
);

CREATE OR REPLACE FILE FORMAT {_FILES} {_SNOWFLAKE_FILE_FORMATS[part_format]};

-- What was loaded within 64 days is not loaded again.
COPY INTO {_TABLE}
FROM @{_STAGE}
PATTERN = '(.*/)?part-[0-9a-f]+-[0-9]+[.]{part_format.replace(".", "[.]")}'
FILE_FORMAT = (FORMAT_NAME = '{_FILES}')
MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE;"""


_ATHENA = _Sql(
    {
        Kind.TEXT: "string",
        Kind.INTEGER: "bigint",
        Kind.BOOLEAN: "boolean",
        Kind.MOMENT: "timestamp",
        Kind.METRICS: "array<struct<{}>>",
    },
    member="{}:{}",
    column="`{}` {}",
    not_null="",  # Athena has no NOT NULL
    comment=' COMMENT "{}"'.format,
)
# Both read gzip and zstd by the files' endings: https://docs.aws.amazon.com/athena/latest/ug/compression-formats.html.
_ATHENA_LINES = """ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'
WITH SERDEPROPERTIES ("timestamp.formats" = "yyyy-MM-dd'T'HH:mm:ss'Z'")
STORED AS TEXTFILE"""
_ATHENA_PARQUET = "STORED AS PARQUET"


def _athena(shape: Shape, part_format: Format) -> str:
    return f"""{_title(shape, part_format, "Athena; BUCKET is yours to name")}
CREATE EXTERNAL TABLE IF NOT EXISTS {_TABLE} (
{_ATHENA.columns(shape)}
)
PARTITIONED BY (`dt` string COMMENT "of the folder, dt=2026-11-23")
{_ATHENA_PARQUET if part_format is Format.PARQUET else _ATHENA_LINES}
LOCATION 's3://BUCKET/lake/referrers/'
TBLPROPERTIES (
    'projection.enabled' = 'true',
    'projection.dt.type' = 'date',
    'projection.dt.format' = 'yyyy-MM-dd',
    'projection.dt.range' = '2026-01-01,NOW+1DAYS'
);"""


_PRINTERS: Mapping[Target, Callable[[Shape, Format], str]] = {
    Target.JSON_SCHEMA: _json_schema,
    Target.BIGQUERY: _bigquery,
    Target.SPARK: _spark,
    Target.DUCKDB: _duckdb,
    Target.SNOWFLAKE: _snowflake,
    Target.ATHENA: _athena,
}
