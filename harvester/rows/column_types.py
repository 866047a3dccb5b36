"""Columns in the languages of their loaders: JSON Schema, BigQuery, Spark, DDL for each database, Python.

`schema_export` makes the files of metrics rows with it, `groups.table` those of the table of links.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeAlias

import orjson

from harvester.rows.schema import Column, Kind

Columns: TypeAlias = tuple[Column, ...]


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
    # In the order of Kind: text, integer, boolean, moment, metrics, map, texts. {} stands for the members of a metric.
    Target.JSON_SCHEMA: ("string", "integer", "boolean", "string", "array", "object", "array"),
    Target.BIGQUERY: ("STRING", "INTEGER", "BOOLEAN", "TIMESTAMP", "RECORD", "JSON", "STRING"),
    Target.SPARK: ("string", "long", "boolean", "timestamp", "array", "map", "array"),
    Target.DUCKDB: (
        "VARCHAR",
        "BIGINT",
        "BOOLEAN",
        "TIMESTAMPTZ",
        "STRUCT({})[]",
        "MAP(VARCHAR, VARCHAR)",
        "VARCHAR[]",
    ),
    Target.SNOWFLAKE: ("VARCHAR", "NUMBER(19, 0)", "BOOLEAN", "TIMESTAMP_LTZ", "ARRAY", "OBJECT", "ARRAY"),
    Target.ATHENA: (
        "string",
        "bigint",
        "boolean",
        "timestamp",
        "array<struct<{}>>",
        "map<string,string>",
        "array<string>",
    ),
    Target.CLICKHOUSE: (
        "String",
        "Int64",
        "Bool",
        "DateTime('UTC')",
        "Array(Tuple({}))",
        "Map(String, Nullable(String))",
        "Array(String)",
    ),
    Target.PYARROW: (
        "pa.string()",
        "pa.int64()",
        "pa.bool_()",
        'pa.timestamp("ms", "UTC")',
        'pa.list_(pa.field("element", pa.struct([{}]), nullable=False))',
        "pa.map_(pa.string(), pa.string())",
        'pa.list_(pa.field("element", pa.string(), nullable=False))',
    ),
    Target.POLARS: (
        "pl.String",
        "pl.Int64",
        "pl.Boolean",
        'pl.Datetime("ms", "UTC")',
        "pl.List(pl.Struct({{{}}}))",
        "pl.Map(pl.String, pl.String)",
        "pl.List(pl.String)",
    ),
}

_WORDS_OF_SQL = {"group"}
"""Names that databases do not take for a column's unless they are quoted."""
_QUOTED = {Target.DUCKDB: '"{}"', Target.SNOWFLAKE: '"{}"', Target.CLICKHOUSE: "`{}`"}
_MEMBERS = {
    Target.ATHENA: "{name}:{type}",
    Target.PYARROW: 'pa.field("{name}", {type}, nullable={nullable})',
    Target.POLARS: '"{name}": {type}',
}
"""A member of a metric; for the other databases name and type."""


def _type(target: Target, kind: Kind) -> str:
    return dict(zip(Kind, _TYPES[target], strict=True))[kind]


def as_json(value: object) -> str:
    """Return a JSON file's content, without the last line feed."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def json_object(columns: Columns, metrics: Columns) -> dict[str, Any]:
    """Return the JSON Schema of an object. Further keys are valid, because later versions add columns."""
    return {
        "type": "object",
        "properties": {column.name: _json_property(column, metrics) for column in columns},
        "required": [column.name for column in columns],
        "additionalProperties": True,
    }


def _json_property(column: Column, metrics: Columns) -> dict[str, Any]:
    kind = _type(Target.JSON_SCHEMA, column.kind)
    schema: dict[str, Any] = {"description": column.means, "type": [kind, "null"] if column.nullable else kind}
    if column.kind is Kind.MOMENT:
        schema |= {"format": "date-time", "pattern": "Z$"}
    if column.kind is Kind.METRICS:
        schema["items"] = json_object(metrics, ())
    if column.kind is Kind.MAP:
        schema["additionalProperties"] = {"type": [_type(Target.JSON_SCHEMA, Kind.TEXT), "null"]}
    if column.kind is Kind.TEXTS:
        schema["items"] = {"type": _type(Target.JSON_SCHEMA, Kind.TEXT)}
    return schema


_LISTS = {Kind.METRICS, Kind.TEXTS}
_KEY_VALUE = Column("key", Kind.TEXT, "the column's name"), Column("value", Kind.TEXT, "its text", nullable=True)


def bigquery_field(column: Column, metrics: Columns, format_: str) -> dict[str, Any]:
    """Return the definition of a column: https://cloud.google.com/bigquery/docs/schemas#creating_a_JSON_schema_file."""
    mode = "REPEATED" if column.kind in _LISTS else "NULLABLE" if column.nullable else "REQUIRED"
    kind, fields = _type(Target.BIGQUERY, column.kind), list[dict[str, Any]]()
    if column.kind is Kind.METRICS:
        fields = [bigquery_field(each, (), format_) for each in metrics]
    elif column.kind is Kind.MAP and format_ == "parquet":
        # https://cloud.google.com/bigquery/docs/reference/rest/v2/tables#ParquetOptions, mapTargetType
        pairs = [bigquery_field(each, (), format_) for each in _KEY_VALUE]
        kind, fields = "RECORD", [{"name": "key_value", "type": "RECORD", "mode": "REPEATED", "fields": pairs}]
    members = {"fields": fields} if fields else {}
    return {"name": column.name, "type": kind, "mode": mode, "description": column.means, **members}


def spark_struct(columns: Columns, metrics: Columns) -> dict[str, Any]:
    """Return a struct in the form that StructType.fromJson reads."""
    return {"type": "struct", "fields": [_spark_field(column, metrics) for column in columns]}


def _spark_field(column: Column, metrics: Columns) -> dict[str, Any]:
    kind: Any = _type(Target.SPARK, column.kind)
    if column.kind is Kind.METRICS:
        kind = {"type": kind, "elementType": spark_struct(metrics, ()), "containsNull": False}
    text = _type(Target.SPARK, Kind.TEXT)
    if column.kind is Kind.TEXTS:
        kind = {"type": kind, "elementType": text, "containsNull": False}
    if column.kind is Kind.MAP:
        kind = {"type": kind, "keyType": text, "valueType": text, "valueContainsNull": True}
    return {"name": column.name, "type": kind, "nullable": column.nullable, "metadata": {"comment": column.means}}


_COLUMN_LINES = {
    Target.DUCKDB: "    {name} {type}{not_null}{comma}  -- {means}",
    Target.SNOWFLAKE: "    {name} {type}{not_null} COMMENT '{quoted}'{comma}",
    Target.ATHENA: '    `{name}` {type} COMMENT "{means}"{comma}',  # Athena has no NOT NULL
    Target.CLICKHOUSE: "    {name} {type} COMMENT '{quoted}'{comma}",
    Target.PYARROW: '        pa.field("{name}", {type}, nullable={nullable}),  # {means}',
    Target.POLARS: '    "{name}": {type},  # {means}',
}
"""A column's line in CREATE TABLE or in Python. quoted: its meaning with single quotes doubled."""


def full_type(target: Target, column: Column, metrics: Columns) -> str:
    """Return a column's type; that of metrics includes the type of each member."""
    member = _MEMBERS.get(target, "{name} {type}")
    members = ", ".join(
        member.format(name=each.name, type=full_type(target, each, ()), nullable=each.nullable)
        for each in (metrics if column.kind is Kind.METRICS else ())
    )
    full = _type(target, column.kind).format(members)
    # ClickHouse has no null in place of a map: it reads an empty one.
    may_be_null = column.nullable and column.kind is not Kind.MAP
    return f"Nullable({full})" if target is Target.CLICKHOUSE and may_be_null else full


def quoted_name(target: Target, name: str) -> str:
    """Return a column's name as the target's SQL needs it."""
    if name not in _WORDS_OF_SQL or target not in _QUOTED:
        return name
    return _QUOTED[target].format(name.upper() if target is Target.SNOWFLAKE else name)


def column_lines(target: Target, columns: Columns, metrics: Columns) -> str:
    """Return the lines of columns, as they stand in CREATE TABLE or in Python."""
    return "\n".join(
        _COLUMN_LINES[target].format(
            name=quoted_name(target, column.name),
            type=full_type(target, column, metrics),
            nullable=column.nullable,
            not_null="" if column.nullable else " NOT NULL",
            means=column.means,
            quoted=column.means.replace("'", "''"),
            comma="," if column is not columns[-1] else "",
        )
        for column in columns
    )
