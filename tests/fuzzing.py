"""Feeds bytes to each parser, guided by the code that they reach: `make fuzz`, or `python -m tests.fuzzing journal`.

The property tests of tests/unit draw from what is known to be nasty; atheris searches for what nobody has thought of:
https://github.com/google/atheris. A parser may raise what it documents and nothing else. What it finds lies in
build/fuzz/TARGET, whose corpus later runs go on with; with a file's path behind the target that file alone is read.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["harvester"]):
    from harvester.bitly.bitlinks import bitlink
    from harvester.bitly.facets import FACETS, NotTheFacet
    from harvester.bitly.groups import read_groups, read_page
    from harvester.bitly.oauth import parse_token_response
    from harvester.bitly.verdicts import classify
    from harvester.cli.command_line.app import app
    from harvester.clock import hint
    from harvester.config.files import files_read
    from harvester.dataset import journal, manifest
    from harvester.errors import InputBroken, InvalidBitlink, UsageError
    from harvester.jsonlines import object_in
    from harvester.links.columns import ListFormat
    from harvester.links.files import read, resolve_lists
    from harvester.rows.decode import HashingReader, UnreadableFile, rows_of
    from harvester.rows.encode import Format, PartFormat
    from harvester.rows.schema import Shape

SECONDS = 60


@contextlib.contextmanager
def file_of(data: bytes, name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield str(path)


def links(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(InvalidBitlink):
        found = bitlink(text)
        assert bitlink(found) == found


def answers(data: bytes) -> None:
    facets = list(FACETS.values())
    for status in (200, 403, 429, 500):
        classify(status, {}, data, facets[len(data) % len(facets)])


def headers(data: bytes) -> None:
    hint({"Retry-After": data.decode(errors="replace")})


def login(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_token_response(200, data, ("a-secret",))


def pages(data: bytes) -> None:
    with contextlib.suppress(ValueError, NotTheFacet):
        body = object_in(data)
        for reader in (read_page, read_groups):
            with contextlib.suppress(NotTheFacet):
                reader(body)


def lists(data: bytes) -> None:
    for form in ListFormat:
        with file_of(data, "links.txt") as path, contextlib.suppress(InputBroken, UsageError):
            for batch in read(resolve_lists([path], None if form is ListFormat.LINES else "1", form)):
                counted = batch.blank + batch.comments + batch.headers + len(batch.invalid) + len(batch.links)
                assert batch.lines == counted


def config(data: bytes) -> None:
    with file_of(data, "any.toml") as path, contextlib.suppress(UsageError):
        files_read(path, app)


def journals(data: bytes) -> None:
    with file_of(data, "journal-00000.journal") as path:
        found = journal.survey(path, len(data) // 2)
        journal.mend(path, found, len(data) // 2)
        assert not journal.survey(path, len(data) // 2).gaps
        list(journal.read(path, 0))
        journal.held_rows(str(Path(path).parent))


def manifests(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        manifest.parse(data, "_manifest.json")


def parts(data: bytes) -> None:
    for format_ in Format:
        with contextlib.suppress(UnreadableFile):
            list(rows_of(HashingReader(io.BytesIO(data)), PartFormat(format_, Shape.NESTED, "referrers")))


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (links, answers, headers, login, pages, lists, config, journals, manifests, parts)
}


def main() -> None:
    name, *files = sys.argv[1:] or ("",)
    if name not in TARGETS:  # each in a process of its own, because the first finding ends it
        for each in TARGETS:
            print(f"{each}:", flush=True)
            subprocess.run([sys.executable, "-m", "tests.fuzzing", each], check=True)
        return
    corpus = Path("build/fuzz") / name
    corpus.mkdir(parents=True, exist_ok=True)
    given = files or [str(corpus), f"-max_total_time={SECONDS}", f"-artifact_prefix={corpus}/found-", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *given, "-rss_limit_mb=4096"], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
