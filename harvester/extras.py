"""Optional dependencies: each is imported here alone, and only by a run that needs it.

An extra is a group of packages that `pip install 'bitly-harvester[NAME]'` adds; pyproject.toml lists them.
"""

import sys
from typing import Any

from harvester.errors import UsageError, install_line


def import_zstd(needed_by: str, error_type: type[UsageError] = UsageError, option: str | None = None) -> Any:
    """Return the module for Zstandard: the standard library's from Python 3.14 on, its backport from PyPI before.

    needed_by: the beginning of the error message, such as `ndjson.zst needs a library`. option: the option
    that asks for it.

    Raises:
        error_type: the backport is not installed.
    """
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - few runs need it
        else:
            from backports import zstd  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise error_type(f"{needed_by}: {install_line('zstd')}", option=option) from error
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
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to import
        import pyarrow.json  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise error_type(f"{needed_by}: {install_line(extra)}", option=option) from error
    return pa


def import_duckdb(needed_by: str) -> Any:
    """Return the module duckdb. needed_by: the beginning of the error message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise UsageError(f"{needed_by}: {install_line('report')}") from error
    return duckdb


def import_jinja2(needed_by: str) -> Any:
    """Return the module jinja2. Arguments and errors as those of `import_duckdb`."""
    try:
        import jinja2  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"{needed_by}: {install_line('report')}") from error
    return jinja2


def import_vl_convert(needed_by: str) -> Any:
    """Return the module vl_convert. Arguments and errors as those of `import_duckdb`."""
    try:
        import vl_convert  # noqa: PLC0415 - an extra of 80 MB
    except ImportError as error:
        raise UsageError(f"{needed_by}: {install_line('report')}") from error
    return vl_convert


def import_pyspark(needed_by: str) -> Any:
    """Return the module pyspark with `pyspark.sql` loaded. Arguments and errors as those of `import_duckdb`."""
    try:
        import pyspark  # noqa: PLC0415 - an extra of 480 MB
        import pyspark.sql  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"{needed_by}: {install_line('spark')}") from error
    return pyspark


def import_redis(needed_by: str) -> Any:
    """Return the module redis with what a plain client needs loaded. needed_by: the beginning of the error message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import redis  # noqa: PLC0415 - an extra, and slow to import
        import redis.backoff  # noqa: PLC0415
        import redis.exceptions  # noqa: PLC0415
        import redis.retry  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"{needed_by} needs a package: {install_line('redis')}") from error
    return redis
