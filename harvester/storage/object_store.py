"""Object stores: `s3://`, `gs://` and `az://` as named objects under a prefix, read, created and replaced."""

import hashlib
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from harvester.errors import OutputError, StoreRefused, UsageError

PATIENCE_SECONDS = 120.0
"""A store that fails is asked again for so long; then the run ends and the same command goes on."""
_HURRIED_SECONDS = 5.0
"""So long once the run is to end."""
_LONGEST_PAUSE_SECONDS = 15.0
_REQUEST_SECONDS = 600
_SMALL_REQUEST_SECONDS = 30
_SMALL_BYTES = 1024 * 1024
"""An object up to this size must come or go in the shorter time: a store that hangs holds up commits meanwhile."""
_CONNECT_SECONDS = 10
_CHUNK_BYTES = 256 * 1024
_MOST_LOST = 3
"""So many connections in a row may be lost while an object is read, and bring nothing of it."""
# `file` stands for the tests' local store, and is not documented.
_SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore", "file": "LocalStore"}
# What every store takes as it is, without an encoding that another program may undo in another way:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_SAFE = re.compile(r"[A-Za-z0-9!_.*'()=,+@:/-]+")
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_NO_HOPE = {"PermissionDeniedError", "UnauthenticatedError", "NotSupportedError", "InvalidPathError"}
_WRONG_REGION = "incorrectly configured region"
# "The upload should be retried": https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
_HINTS = {
    "ExpiredToken": "The credentials of the environment have expired",
    "RequestTimeTooSkewed": "Set this machine's clock",
    "AuthorizationHeaderMalformed": "Is AWS_REGION the bucket's?",
    "EntityTooLarge": "Begin a new --out with smaller --part-bytes",
}

T = TypeVar("T")


class Object(NamedTuple):
    """An object directly under the prefix. name: without the prefix. size: bytes."""

    name: str
    size: int


def is_url(out: str) -> bool:
    """True for what looks like a URL, also of a store that harvester does not know."""
    return _ANY_SCHEME.match(out) is not None


def normal(url: str) -> str:
    """Give a store's URL as it is kept: without a slash at its end.

    Raises:
        UsageError: another scheme, no bucket or prefix, or characters that do not mean the same to every program.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{scheme}://: harvester writes to s3://, gs:// and az://, to a folder or to a file", option="--out"
        )
    if "@" in rest.split("/")[0]:
        raise UsageError(f"{scheme}://: credentials stand in the environment, never in the address", option="--out")
    path = rest.rstrip("/")
    bucket, _, prefix = path.partition("/")
    if (not bucket and scheme != "file") or not prefix:
        raise UsageError(
            f"{url}: a bucket and a prefix were expected, such as {scheme}://my-bucket/bitly", option="--out"
        )
    if not _SAFE.fullmatch(path) or any(part in {"", ".", ".."} for part in prefix.split("/")):
        raise UsageError(
            f"{url}: a prefix is made of letters, digits and !_.*'()=,+@:- between single slashes, in ASCII",
            option="--out",
        )
    return f"{scheme}://{path}"


def open_store(url: str, hurried: threading.Event | None = None) -> "ObjectStorage":
    """Open what is under a store's URL; makes no request. Credentials are the environment's (docs/object-stores.md).

    hurried: set when there is to be little patience; `Objects.hurry` sets it too.

    Raises:
        UsageError: no such URL, or the library is missing, or it does not take what the environment says.
    """
    url = normal(url)
    scheme, _, path = url.partition("://")
    library = _library()
    bucket, _, prefix = path.partition("/")

    def opened(seconds: int) -> Any:
        if scheme == "file":
            return library.store.LocalStore(prefix="/" + prefix, mkdir=True)
        return getattr(library.store, _SCHEMES[scheme])(
            bucket,
            prefix=prefix,
            client_options=_client_options(seconds),
            retry_config={"max_retries": 0},  # the patience below, which a stop can end
        )

    if scheme == "s3":
        _check_endpoint()
    try:
        return ObjectStorage(url, library, opened(_SMALL_REQUEST_SECONDS), opened(_REQUEST_SECONDS), hurried)
    except (library.exceptions.BaseError, ValueError) as error:
        raise UsageError(f"{url}: {_reason(error)} (docs/object-stores.md, credentials)") from error


def _library() -> Any:
    try:
        import obstore  # noqa: PLC0415 - an extra
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("an object store needs a library: pip install 'bitly-harvester[cloud]'") from error
    return obstore


def _client_options(seconds: int) -> dict[str, Any]:
    plain = _http_allowed() or urlsplit(_endpoint()).hostname in _LOOPBACK
    return {"timeout": f"{seconds}s", "connect_timeout": f"{_CONNECT_SECONDS}s", "allow_http": plain}


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _http_allowed() -> bool:
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}


def _check_endpoint() -> None:
    """Refuse what the library would take, and fail with at the first request."""
    if not _endpoint():
        return
    try:
        parts = urlsplit(_endpoint())
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        fine = False
    if not fine:
        raise UsageError("AWS_ENDPOINT_URL: a URL such as https://s3.example.com was expected")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not _http_allowed():
        raise UsageError("AWS_ENDPOINT_URL: plain HTTP can be read on the way: use https, or set AWS_ALLOW_HTTP=true")


class ObjectStorage:
    """The objects directly under a prefix. Every method blocks, is patient, and belongs to any thread.

    Every method may raise OutputError: the store refused, or stayed out for longer than the patience lasts.
    """

    def __init__(self, url: str, library: Any, store: Any, patient_store: Any, hurried: threading.Event | None) -> None:
        self.url = url
        self._library = library
        self._store = store
        self._patient_store = patient_store  # for what is large
        self._hurried = hurried or threading.Event()

    def hurry(self) -> None:
        """Have little patience: the run is to end."""
        self._hurried.set()

    def listing(self) -> Iterator[Object]:
        """Yield the objects directly under the prefix, in no certain order."""
        found = self._patiently("the prefix", lambda: self._library.list_with_delimiter(self._store))
        for meta in found["objects"]:
            yield Object(meta["path"], meta["size"])

    def chunks(self, name: str) -> Iterator[bytes] | None:
        """Give an object's bytes, piece by piece; None if it is not there."""
        found = self._patiently(name, lambda: self._library.get(self._patient_store, name), missing=None)
        return None if found is None else self._read(name, found)

    def digest(self, name: str) -> tuple[int, str] | None:
        """Read an object; give its size in bytes and its sha256; None if it is not there."""

        def read() -> tuple[int, str]:
            size, sha256 = 0, hashlib.sha256()
            for chunk in self._library.get(self._patient_store, name).stream():
                size += len(chunk)
                sha256.update(chunk)
            return size, sha256.hexdigest()

        return self._patiently(name, read, missing=None)

    def _read(self, name: str, found: Any) -> Iterator[bytes]:
        """Yield an object's bytes; where the connection is lost, go on with another one."""
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

    def get(self, name: str) -> bytes | None:
        """Give all of an object's bytes; None if it is not there."""
        return self._patiently(name, lambda: bytes(self._library.get(self._store, name).bytes()), missing=None)

    def create(self, name: str, data: bytes | mmap.mmap) -> bool:
        """Make an object that is not there, all or nothing; False if there is one.

        It may be ours: the answer to an earlier try may have been lost.
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

    def replace(self, name: str, data: bytes, *, patient: bool = True) -> None:
        """Make an object or replace it, all or nothing."""
        store = self._store_for(data)
        self._patiently(name, lambda: self._library.put(store, name, data, use_multipart=False), patient=patient)

    def delete(self, name: str) -> None:
        """Take an object away; fine if it is not there."""
        self._patiently(name, lambda: self._library.delete(self._store, name), missing=None)

    def _store_for(self, data: bytes | mmap.mmap) -> Any:
        return self._store if len(data) <= _SMALL_BYTES else self._patient_store

    def _patiently(
        self,
        name: str,
        request: Callable[[], T],
        *,
        patient: bool = True,
        missing: Any = ...,
    ) -> T:
        """Do a request again until it is done, refused, or no patience is left. missing: what a 404 gives."""
        import tenacity  # noqa: PLC0415 - a look at a folder's manifest needs none of it

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._passing),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE_SECONDS),
            stop=tenacity.stop_any(
                tenacity.stop_after_delay(PATIENCE_SECONDS if patient else 0.0),
                tenacity.stop_all(
                    tenacity.stop_when_event_set(self._hurried), tenacity.stop_after_delay(_HURRIED_SECONDS)
                ),
            ),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(request)
        except FileNotFoundError as error:
            if missing is not ...:
                return cast("T", missing)
            raise self._explained(name, error) from error
        except (self._library.exceptions.BaseError, OSError, ValueError) as error:
            raise self._explained(name, error) from error

    def _sleep(self, seconds: float) -> None:
        if self._hurried.is_set():
            time.sleep(min(seconds, 1.0))
        else:
            self._hurried.wait(seconds)

    def _passing(self, error: BaseException) -> bool:
        """True for what another try may mend. A client's error may be one too: a clock, a conflict, a throttle."""
        if not isinstance(error, self._library.exceptions.BaseError) or type(error).__name__ in _NO_HOPE:
            return False
        status = _status(error)
        if _WRONG_REGION in str(error):
            return False
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
            what += ". Is there such a bucket?"
        kind = StoreRefused if refused or _code(error) in _HINTS else OutputError
        return kind(f"{what}; then run the same command again (docs/object-stores.md)")


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: BaseException) -> str:
    """Give S3's own word for an error; nothing where it has none."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def _reason(error: BaseException) -> str:
    """Say in a few words what a store said: never an address, which may be signed."""
    text = str(error).partition("\n\nDebug source")[0]
    status, code = re.search(r"status code: (\d{3}[A-Za-z ]*)", text), _code(error)
    if status:
        return status[1].strip() + (f" ({code})" if code else "")
    cause = re.findall(r'(?:message|error): "([^"]+)"', str(error))
    said = text.rpartition(" - ")[2].partition("\n")[0]
    said = re.sub(r"\w+://\S+", "…", said)[:200]
    return f"{said} ({cause[-1]})" if cause else said
