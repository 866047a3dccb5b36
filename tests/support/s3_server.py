"""S3 on loopback: moto's server, with faults before and behind it, and what a bucket holds."""

import gzip
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import obstore
from obstore.store import S3Store
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, environment, harvester
from tests.support.output_checks import expected_metrics

BUCKET = "lake"
LINKS = [f"bit.ly/{i}" for i in range(7)]
_NUMBERS = count()
SECRET = "wJalrXUtnFEMI-not-a-real-one"
_BODY = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>no</Message></Error>'
_STATUS = {
    "SlowDown": "503 Slow Down",
    "AccessDenied": "403 Forbidden",
    "InternalError": "500 Internal Server Error",
    "ConditionalRequestConflict": "409 Conflict",
    "ExpiredToken": "400 Bad Request",
    "PermanentRedirect": "301 Moved Permanently",
}
LOST = "lost"
"""Do what was asked for, and close the connection without an answer."""
HALF = "half"
"""Do so in the middle of the answer."""

Fault = Callable[[str, str], str | None]
"""Method and object's name → an error's code, LOST, HALF or None."""


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Say nothing."""


@dataclass
class S3:
    """The server. requests: how often each method met each name. fault: asked before each of them."""

    url: str = ""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    fault: Fault = lambda _method, _name: None
    after: Callable[[str, str], object] = lambda _method, _name: None
    deaf: bool = False
    """Pass over If-None-Match, as old stores do."""

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def store(self, prefix: str = "") -> S3Store:
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.url,
            access_key_id="AKIDEXAMPLE",
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def calm(self) -> None:
        self.fault = lambda _method, _name: None
        self.after = lambda _method, _name: None
        self.deaf = False
        self.requests.clear()


def _application(s3: S3) -> Callable[..., Iterable[bytes]]:
    # Half a second, which a worker that serves no S3 need not wait for.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415

    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, name = environ["REQUEST_METHOD"], environ["PATH_INFO"].rpartition("/")[2]
        s3.requests[method, name] += 1
        if s3.deaf:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        code = s3.fault(method, name)
        if code in _STATUS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(_STATUS[code], [("Content-Type", "application/xml")])
            return [_BODY % code.encode()]
        result = list(moto(environ, start_response))
        s3.after(method, name)
        if code == LOST:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if code == HALF:
            body = b"".join(result)
            return [body[: len(body) // 2]]
        return result

    return answer


@contextmanager
def serving_s3() -> Iterator[S3]:
    """Serve an S3 with one bucket."""
    s3 = S3()
    server = make_server("127.0.0.1", 0, _application(s3), threaded=True, request_handler=_Quiet)
    s3.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, name="s3")
    thread.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def objects(store: Any) -> dict[str, bytes]:
    """All that is directly under the store's prefix."""
    found = obstore.list_with_delimiter(store)["objects"]
    return {meta["path"]: bytes(obstore.get(store, meta["path"]).bytes()) for meta in found}


def rows_in(held: dict[str, bytes]) -> list[dict[str, Any]]:
    parts = [gzip.decompress(data) for name, data in sorted(held.items()) if name.startswith("part-")]
    return [json.loads(line) for part in parts for line in part.splitlines()]


def check_whole(held: dict[str, bytes], links: set[str]) -> None:
    """Each link has one row, the manifest lists the parts as they are, and all is declared done."""
    rows, manifest = rows_in(held), json.loads(held["_manifest.json"])
    assert Counter(row["bitlink"] for row in rows) == Counter(links)
    for row in rows:
        assert row["metrics"] == expected_metrics(row)
    found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in held.items() if "part-" in name}
    assert {part["path"]: (part["bytes"], part["sha256"]) for part in manifest["parts"]} == found
    assert sum(part["rows"] for part in manifest["parts"]) == manifest["dataset"]["rows"] == len(rows)
    assert manifest["complete"]
    assert held["_SUCCESS"] == b""


class Case:
    """A list, a prefix of its own, a work dir, and the command for them."""

    def __init__(self, s3: S3, folder: Path, served: Served) -> None:
        self.s3, self.folder, self.served = s3, folder, served
        self.prefix = f"bitly/dt=2026-11-{next(_NUMBERS):02d}"
        self.out = f"s3://{BUCKET}/{self.prefix}"
        self.work = folder / "work"
        self.links = folder / "links.txt"
        self.links.write_text("\n".join(LINKS) + "\n")
        self.store = s3.store(self.prefix)

    def begin_again(self) -> None:
        """Take another prefix and another work dir."""
        number = next(_NUMBERS)
        self.prefix = f"bitly/again-{number}"
        self.out = f"s3://{BUCKET}/{self.prefix}"
        self.work = self.folder / f"work-{number}"
        self.store = self.s3.store(self.prefix)
        self.served.sandbox.answered.clear()
        self.s3.calm()

    def arguments(self, *more: str, work: Path | None = None) -> list[str]:
        where = ["--out", self.out, "--work-dir", str(work or self.work), "--base-url", self.served.url]
        return ["run", str(self.links), *where, *NO_LIMITS, "--part-rows", "3", "--connections", "1", *more]

    def run(self, *more: str, work: Path | None = None, patience: float | None = None) -> CompletedProcess[str]:
        # The same command in a process of its own; only its patience is shorter.
        code = (
            "from harvester.cli.main import main; from harvester.storage import object_store; "
            f"object_store.PATIENCE_SECONDS = {patience}; main()"
        )
        wrapper = () if patience is None else (sys.executable, "-c", code)
        return _run(self.arguments(*more, work=work), self.s3.env, wrapper)

    def held(self) -> dict[str, bytes]:
        return objects(self.store)


def _run(arguments: list[str], env: dict[str, str], wrapper: tuple[str, ...]) -> CompletedProcess[str]:
    if not wrapper:
        return harvester(*arguments, env=env)
    return subprocess.run(
        [*wrapper, *arguments], env=environment(env), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
