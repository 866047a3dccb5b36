"""Object stores (`s3://`, `gs://`, `az://`) as a `Storage`: the objects directly under a prefix."""

# ruff: noqa: D102 - the methods are described by storage.Storage

import io
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from harvester.errors import OutputError, StoreRefused, UsageError, install_line
from harvester.storage.filesystem import digest_of

MOST_PART_BYTES = 512 * 1024 * 1024
"""The largest --part-bytes: a part is uploaded in one request of at most 5 GiB, and flat rows can be several times as
long as the nested ones that --part-bytes counts."""
PATIENCE_SECONDS = 120.0
"""How long a failing request is repeated before the run ends; the same command resumes it."""
_ENDING_SECONDS = 5.0
"""The same once the run is ending."""
_LONGEST_PAUSE_SECONDS = 15.0
_REQUEST_SECONDS = 600
_SMALL_REQUEST_SECONDS = 30
_SMALL_BYTES = 1024 * 1024
"""Objects up to this size use the shorter timeout: commits wait while a store hangs."""
_CONNECT_SECONDS = 10
_CHUNK_BYTES = 256 * 1024
_MOST_LOST = 3
"""Connections that may be lost in a row, without a byte received, while an object is read."""
_STREAM_BYTES = 1024 * 1024
# `file` is the library's store in a local folder: for tests, undocumented.
_STORES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore", "file": "LocalStore"}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_NO_HOPE = {"PermissionDeniedError", "UnauthenticatedError", "NotSupportedError", "InvalidPathError"}
_WRONG_REGION = "incorrectly configured region"
# "The upload should be retried": https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
_HINTS = {
    "ExpiredToken": "The credentials in the environment have expired",
    "RequestTimeTooSkewed": "Set this machine's clock",
    "AuthorizationHeaderMalformed": "Is AWS_REGION the bucket's?",
    "EntityTooLarge": "Start a new --out with smaller --part-bytes",
}

T = TypeVar("T")


def open_store(url: str, ending: threading.Event | None = None) -> "ObjectStorage":
    """Open a store's normal URL, without a request. Credentials come from the environment (docs/object-stores.md).

    ending: set when the run is ending, which shortens the patience; `ObjectStorage.shorten_waits` sets it too.

    Raises:
        UsageError: the library is missing, or it refuses the environment's settings.
    """
    scheme, _, path = url.partition("://")
    library = _library()
    bucket, _, prefix = path.partition("/")

    def opened(seconds: int) -> Any:
        if scheme == "file":
            return library.store.LocalStore(prefix="/" + prefix, mkdir=True)
        return getattr(library.store, _STORES[scheme])(
            bucket,
            prefix=prefix,
            client_options=_client_options(seconds),
            retry_config={"max_retries": 0},  # `_patiently` retries instead, and gives up sooner when the run is ending
        )

    if scheme == "s3":
        _check_endpoint()
    try:
        return ObjectStorage(url, library, opened(_SMALL_REQUEST_SECONDS), opened(_REQUEST_SECONDS), ending)
    except (library.exceptions.BaseError, ValueError) as error:
        raise UsageError(f"{url}: {_reason(error)} (docs/object-stores.md, credentials)") from error


def _library() -> Any:
    try:
        import obstore  # noqa: PLC0415 - an extra
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"an object store needs a library: {install_line('cloud')}") from error
    return obstore


def _client_options(seconds: int) -> dict[str, Any]:
    plain = _http_allowed() or urlsplit(_endpoint()).hostname in _LOOPBACK
    return {"timeout": f"{seconds}s", "connect_timeout": f"{_CONNECT_SECONDS}s", "allow_http": plain}


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _http_allowed() -> bool:
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}


def _check_endpoint() -> None:
    """Raise UsageError for an endpoint that the library accepts here but could not use at the first request."""
    if not _endpoint():
        return
    try:
        parts = urlsplit(_endpoint())
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a port, or not an address
        fine = False
    if not fine:
        raise UsageError("AWS_ENDPOINT_URL: must be a URL such as https://s3.example.com")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not _http_allowed():
        raise UsageError("AWS_ENDPOINT_URL: plain HTTP is not encrypted: use https, or set AWS_ALLOW_HTTP=true")


class ObjectStorage:
    """The objects directly under a prefix. For any thread.

    A request that fails for a passing reason is repeated until it succeeds or the patience ends; see `_patiently`.
    """

    moves_files = False

    def __init__(self, url: str, library: Any, store: Any, patient_store: Any, ending: threading.Event | None) -> None:
        self.url = url
        self._library = library
        self._store = store
        self._patient_store = patient_store  # with a longer timeout, for large objects
        self._ending = ending or threading.Event()

    def shorten_waits(self) -> None:
        self._ending.set()

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        found = self._patiently("the prefix", lambda: self._library.list_with_delimiter(self._store))
        return sorted(meta["path"] for meta in found["objects"])

    def folders(self) -> list[str]:
        """Return the last part of each longer prefix, one slash below this one, sorted."""
        found = self._patiently("the prefix", lambda: self._library.list_with_delimiter(self._store))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def open(self, name: str) -> BinaryIO:
        """Open an object as a stream, which is downloaded as it is read."""
        found = self._patiently(name, lambda: self._library.get(self._patient_store, name), missing=None)
        if found is None:
            raise FileNotFoundError(self.path(name))
        return cast("BinaryIO", io.BufferedReader(_ChunkStream(self._read(name, found)), _STREAM_BYTES))

    def get(self, name: str) -> bytes | None:
        return self._patiently(name, lambda: bytes(self._library.get(self._store, name).bytes()), missing=None)

    def digest(self, name: str) -> tuple[int, str] | None:
        return self._patiently(
            name, lambda: digest_of(self._library.get(self._patient_store, name).stream()), missing=None
        )

    def _read(self, name: str, found: Any) -> Iterator[bytes]:
        """Yield an object's bytes; when the connection is lost, request the rest of the same version of the object."""
        size, e_tag, at, lost = found.meta["size"], found.meta["e_tag"], 0, 0
        while True:
            try:
                for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                    at, lost = at + len(chunk), 0
                    yield bytes(chunk)
                return
            except self._library.exceptions.BaseError as error:
                lost += 1
                if lost > _MOST_LOST:
                    raise self._explained(name, error) from error
            if at == size:
                return
            rest = {"range": {"offset": at}, "if_match": e_tag}
            found = self._patiently(name, lambda: self._library.get(self._patient_store, name, options=rest))  # noqa: B023

    def create(self, name: str, data: bytes | mmap.mmap) -> bool:
        """Upload an object under a free name in one conditional request; return False where the name is taken.

        The object that takes the name may be this one: the response to an earlier try may have been lost.
        """

        def put() -> bool:
            try:
                self._library.put(self._store_for(data), name, data, mode="create", use_multipart=False)
            except self._library.exceptions.AlreadyExistsError as error:
                if _code(error) in _CONFLICTS:
                    raise
                return False
            return True

        return self._patiently(name, put)

    def create_from_file(self, name: str, source: str) -> bool:
        with open(source, "rb") as stream:
            # Never closed explicitly: a request that failed may still be reading it for a moment.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self.create(name, data)

    def replace(self, name: str, chunks: Iterable[bytes], *, patient: bool = True, kind: str = "") -> None:
        """kind: the object's Content-Type, by which a browser shows it."""
        data, attributes = b"".join(chunks), {"Content-Type": kind} if kind else None
        store = self._store_for(data)
        more = {"use_multipart": False, "attributes": attributes}
        self._patiently(name, lambda: self._library.put(store, name, data, **more), patient=patient)

    def delete(self, name: str) -> None:
        self._patiently(name, lambda: self._library.delete(self._store, name), missing=None)

    def _store_for(self, data: bytes | mmap.mmap) -> Any:
        return self._store if len(data) <= _SMALL_BYTES else self._patient_store

    def _patiently(self, name: str, request: Callable[[], T], *, patient: bool = True, missing: Any = ...) -> T:
        """Repeat a request until it succeeds, is refused, or the patience ends. missing: the result for a 404.

        Patience is PATIENCE_SECONDS since the first try; once the run is ending, _ENDING_SECONDS; with patient=False
        there is only one try.
        """
        import tenacity  # noqa: PLC0415 - reading a local manifest does not need it

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._passing),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE_SECONDS),
            stop=tenacity.stop_any(
                tenacity.stop_after_delay(PATIENCE_SECONDS if patient else 0.0),
                tenacity.stop_all(
                    tenacity.stop_when_event_set(self._ending), tenacity.stop_after_delay(_ENDING_SECONDS)
                ),
            ),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(request)
        except (self._library.exceptions.BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and missing is not ...:
                return cast("T", missing)
            raise self._explained(name, error) from error

    def _sleep(self, seconds: float) -> None:
        if self._ending.is_set():
            time.sleep(min(seconds, 1.0))
        else:
            self._ending.wait(seconds)

    def _passing(self, error: BaseException) -> bool:
        """True for an error that another try may not meet, including the 4xx of a timeout, a conflict, a throttle."""
        if not isinstance(error, self._library.exceptions.BaseError):
            return False
        if type(error).__name__ in _NO_HOPE or _WRONG_REGION in str(error):
            return False
        status = _status(error)
        return status is None or status >= 500 or status in {408, 409, 429}

    def _explained(self, name: str, error: BaseException) -> OutputError:
        refused = _status(error) in {401, 403} or type(error).__name__ in _NO_HOPE
        what = f"{self.url}: {name}: {_reason(error)}"
        if "169.254." in str(error) or "metadata.google" in str(error):
            what += ". No credentials were found in the environment, and this machine has none of its own"
        elif (code := _code(error)) in _HINTS:
            what += f". {_HINTS[code]}"
        elif _WRONG_REGION in str(error):
            what += f". {_HINTS['AuthorizationHeaderMalformed']}"
        elif refused:
            what += ". The credentials of the environment must be able to list, read, write and delete there"
        elif isinstance(error, FileNotFoundError) or _status(error) == 404:
            what += ". Does the bucket exist?"
        kind = StoreRefused if refused or _code(error) in _HINTS else OutputError
        return kind(f"{what}; then run the same command again (docs/object-stores.md)")


class _ChunkStream(io.RawIOBase):
    """A readable stream over an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill buffer from the current chunk, fetching the next one when it is used up; return the bytes copied."""
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: BaseException) -> str:
    """Return S3's own code for an error, such as AccessDenied; empty where the error has none."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def _reason(error: BaseException) -> str:
    """Return a store's error in a few words, without URLs, which may contain a signature."""
    text = str(error).partition("\n\nDebug source")[0]
    status, code = re.search(r"status code: (\d{3}[A-Za-z ]*)", text), _code(error)
    if status:
        return status[1].strip() + (f" ({code})" if code else "")
    cause = re.findall(r'(?:message|error): "([^"]+)"', str(error))
    reason = text.rpartition(" - ")[2].partition("\n")[0]
    reason = re.sub(r"\w+://\S+", "…", reason)[:200]
    return f"{reason} ({cause[-1]})" if cause else reason
