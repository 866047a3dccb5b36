"""Optional dependencies: each is imported here alone, and only by a run that needs it.

An extra is a group of packages that `pip install 'bitly-harvester[NAME]'` adds; pyproject.toml lists them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harvester.errors import UsageError, install_line


@contextmanager
def _extra(
    name: str, needed_by: str, error_type: type[UsageError] = UsageError, option: str | None = None
) -> Iterator[None]:
    """Turn an ImportError of the block into an error that says what to install. Arguments as those of `import_zstd`."""
    try:
        yield
    except ImportError as error:
        raise error_type(f"{needed_by}: {install_line(name)}", option=option) from error


def import_zstd(needed_by: str, error_type: type[UsageError] = UsageError, option: str | None = None) -> Any:
    """Return the module for Zstandard: the standard library's from Python 3.14 on, its backport from PyPI before.

    needed_by: the beginning of the error message, such as `ndjson.zst needs a library`. option: the option
    that asks for it.

    Raises:
        error_type: the backport is not installed.
    """
    with _extra("zstd", needed_by, error_type, option):
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - few runs need it
        else:
            from backports import zstd  # noqa: PLC0415 - an extra
    return zstd


def import_pyarrow(
    needed_by: str, error_type: type[UsageError] = UsageError, extra: str = "parquet", option: str | None = None
) -> Any:
    """Return pyarrow with its submodules `json` and `parquet` loaded.

    needed_by: the beginning of the error message. extra: the one that the message tells to install. option: the option
    that asks for it.

    Raises:
        error_type: pyarrow is not installed.
    """
    with _extra(extra, needed_by, error_type, option):
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to import
        import pyarrow.json  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    return pa


def import_duckdb(needed_by: str) -> Any:
    """Return the module duckdb. needed_by: the beginning of the error message.

    Raises:
        UsageError: it is not installed.
    """
    with _extra("report", needed_by):
        import duckdb  # noqa: PLC0415 - an extra, and slow to import
    return duckdb


def import_jinja2(needed_by: str) -> Any:
    """Return the module jinja2. Arguments and errors as those of `import_duckdb`."""
    with _extra("report", needed_by):
        import jinja2  # noqa: PLC0415 - an extra
    return jinja2


def import_vl_convert(needed_by: str) -> Any:
    """Return the module vl_convert. Arguments and errors as those of `import_duckdb`."""
    with _extra("report", needed_by):
        import vl_convert  # noqa: PLC0415 - an extra of 80 MB
    return vl_convert


def import_redis(needed_by: str) -> Any:
    """Return the module redis with what a plain client needs. Arguments and errors as those of `import_duckdb`."""
    with _extra("redis", f"{needed_by} needs a package"):
        import redis  # noqa: PLC0415 - an extra, and slow to import
        import redis.backoff  # noqa: PLC0415
        import redis.exceptions  # noqa: PLC0415
        import redis.retry  # noqa: PLC0415
    return redis


def import_pyspark(needed_by: str) -> Any:
    """Return the module pyspark with `pyspark.sql` loaded. Arguments and errors as those of `import_duckdb`."""
    with _extra("spark", needed_by):
        import pyspark  # noqa: PLC0415 - an extra of 480 MB
        import pyspark.sql  # noqa: PLC0415
    return pyspark
