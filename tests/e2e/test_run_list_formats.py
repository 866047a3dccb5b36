"""The command with lists of every form, against a sandbox."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester
from tests.support.output_checks import check_reconciled, failures, manifest, rows

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINKS = [f"bit.ly/{n}" for n in range(40)]


def write(folder: Path, name: str, links: list[str]) -> str:
    """Write links into a list of the form that its name says."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"title": ["x"] * len(links), "link": links}), str(path))
        return str(path)
    lines = {
        "txt": [*links],
        "csv": ["title,link", *(f'"a, b\nc",{link}' for link in links)],
        "tsv": ["title\tlink", *(f'"a\t{link}' for link in links)],
        "ndjson": [json.dumps({"title": "x", "link": link}) for link in links],
    }[name.split(".")[1]]
    content = "".join(line + "\n" for line in lines).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    return str(path)


def test_lists_of_several_forms_make_one_run(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    names = ["a.txt.zst", "b-1.csv", "b-2.csv.zst", "c.tsv.gz", "d.ndjson", "e.parquet"]
    for at, name in enumerate(names):
        write(tmp_path, name, LINKS[at * 5 : at * 5 + 6])  # each shares a link with the next
    lists = [str(tmp_path / name) for name in ("a.txt.zst", "b-*.csv*", "c.tsv.gz", "d.ndjson", "e.parquet")]
    done = harvester("run", *lists, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 0, done.stderr
    check_reconciled(out, set(LINKS[:31]))
    listed = manifest(out)["list"]
    counts = {"blank": 0, "comments": 0, "headers": 3, "invalid": 0, "duplicates": 5, "links": 31, "differing": 0}
    assert listed == {"lines": 39, **counts}
    assert served.sandbox.requests.total() == 31


@pytest.mark.parametrize("name", ["l.txt.zst", "l.csv", "l.tsv.zst", "l.ndjson.gz", "l.parquet"])
def test_the_same_links_in_another_form_are_not_asked_for_again(
    tmp_path: Path, serve: Callable[..., Served], name: str
) -> None:
    served = serve()
    options = ("--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    first = harvester("run", write(tmp_path, "links.txt", LINKS), *options, "--max-calls", "30")
    assert first.returncode == 9, first.stderr
    again = harvester("run", write(tmp_path, name, LINKS), *options)
    assert again.returncode == 0, again.stderr
    assert served.sandbox.requests.total() == len(LINKS)
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("name", ["l.csv", "l.tsv.zst", "l.ndjson.gz", "l.parquet"])
@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_any_form_may_come_from_standard_input(
    tmp_path: Path, serve: Callable[..., Served], name: str, strict: tuple[str, ...]
) -> None:
    content = Path(write(tmp_path, name, LINKS)).read_bytes()
    options = ("--list-format", name.split(".")[1], "--column", "link", "--out", str(tmp_path / "out"))
    done = harvester("run", "-", *options, *strict, "--base-url", serve().url, *NO_LIMITS, stdin=content)
    assert done.returncode == 0, done.stderr
    assert {row["bitlink"] for row in rows(tmp_path / "out")} == set(LINKS)


def test_a_bad_record_is_reported_where_it_begins_and_strict_refuses_it(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, path, out = serve(), tmp_path / "links.csv", tmp_path / "out"
    path.write_text('title,link\n"two\nlines",bit.ly/a\n"more\nlines",nonsense\n1,2,ragged\n')
    options = ("--base-url", served.url, *NO_LIMITS)
    strict = harvester("run", str(path), "--out", str(out), *options, "--strict")
    assert (strict.returncode, served.sandbox.requests.total()) == (2, 0)
    assert "2 of 4 lines are not bitlinks" in strict.stderr
    done = harvester("run", str(path), "--out", str(out), *options)
    assert done.returncode == 0, done.stderr
    assert [(each["file"], each["line"], each["text"]) for each in failures(out)] == [
        (str(path), 4, "nonsense"),
        (str(path), 6, "1,2,ragged"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "title,link\nbit.ly/a,\nbit.ly/b,\n"),
        ("l.csv", "title;link\nbit.ly/a;nothing\n"),
        ("l.tsv", "title\tlink\nbit.ly/a\t\n"),
        ("l.ndjson", '{"title":"bit.ly/a","Link":null}\n'),
    ],
)
def test_a_column_that_has_no_links_is_named(
    tmp_path: Path, serve: Callable[..., Served], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    done = harvester("run", str(tmp_path / name), "--out", str(tmp_path / "out"), "--base-url", serve().url)
    assert done.returncode == 2
    assert "there are no links in the list; its column link has none (--column)" in done.stderr.replace("Link", "link")


MANY = "".join(f"bit.ly/{n}\n" for n in range(20)) + "not a link\n" * 21


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (MANY, (), 3),
        (MANY, ("--max-invalid", "100%"), 0),
        (MANY, ("--max-invalid", "21"), 0),
        (MANY, ("--max-invalid", "5%"), 3),
        ("bit.ly/a\n" + "not a link\n" * 20, (), 0),
        ("bit.ly/a\nnot a link\n", ("--max-invalid", "0"), 3),
    ],
)
def test_a_list_that_is_mostly_no_list_is_no_success_and_all_its_links_have_rows(
    tmp_path: Path, serve: Callable[..., Served], content: str, options: tuple[str, ...], code: int
) -> None:
    (tmp_path / "links.txt").write_text(content)
    out = tmp_path / "out"
    done = harvester(
        "run", str(tmp_path / "links.txt"), "--out", str(out), "--base-url", serve().url, *NO_LIMITS, *options
    )
    assert done.returncode == code, done.stderr
    assert ("--max-invalid" in done.stderr) is (code == 3)
    for words in ("Repeating the command changes nothing: fix the list", "with --max-invalid 100%"):
        assert (words in done.stderr) is (code == 3)
    assert (out / "_SUCCESS").exists() is (code == 0)
    assert len(rows(out)) == content.count("bit.ly")


@pytest.mark.parametrize(
    "content",
    [
        ",".join(LINKS).encode(),
        "\u2028".join(LINKS).encode(),
        "".join(f'{{"bitlink":"{link}"}}' for link in LINKS).encode(),
        b"# exported\n[\n" + ",\n".join(f'"{link}"' for link in LINKS).encode() + b"\n]\n",
        "bit.ly/x\n".encode("utf-16") + "".join(f"{link}\n" for link in LINKS).encode(),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_a_list_that_hides_most_of_its_links_is_no_success(
    tmp_path: Path, serve: Callable[..., Served], content: bytes, piped: bool
) -> None:
    served, path, out = serve(), tmp_path / "links.txt", tmp_path / "out"
    path.write_bytes(content if content.startswith((b"#", b"\xff")) else b"bit.ly/x\n" + content)
    options = ("--out", str(out), "--base-url", served.url, *NO_LIMITS)
    done = harvester("run", "-" if piped else str(path), *options, stdin=path.read_bytes() if piped else None)
    assert done.returncode == 2
    assert served.sandbox.requests.total() <= 1  # the line before them may be a link
    assert not (out / "_SUCCESS").exists()


def test_failures_are_a_list_by_their_name_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    options = ("--base-url", served.url, *NO_LIMITS)
    links = write(tmp_path, "links.txt", ["nonsense", "bit.ly/missing-a", "bit.ly/b"])
    assert harvester("run", links, "--out", str(tmp_path / "out"), *options).returncode == 0
    done = harvester("run", str(tmp_path / "out/_failures.ndjson"), "--out", str(tmp_path / "more"), *options)
    assert done.returncode == 3, done.stderr  # nobody was answered in that dataset, so no refusal is final
    assert sorted(each["kind"] for each in failures(tmp_path / "more")) == ["failed", "invalid"]


def test_a_column_that_a_later_list_lacks_stops_the_run_before_the_first_call(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, odd = serve(), tmp_path / "odd.csv"
    odd.write_text("title,url\nx,bit.ly/z\n")
    options = ("--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    done = harvester("run", write(tmp_path, "links.csv", LINKS), str(odd), *options)
    assert (done.returncode, served.sandbox.requests.total()) == (2, 0)
    assert f"{odd}: no column is called bitlink or link or short_url or id; found: title, url" in done.stderr
    piped = harvester("run", "-", "--list-format", "csv", *options, stdin=odd.read_bytes())
    assert (piped.returncode, served.sandbox.requests.total()) == (2, 0)
    assert "-: no column is called bitlink" in piped.stderr


def test_a_torn_zstd_table_keeps_what_could_be_read(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out, path = serve(), tmp_path / "out", tmp_path / "links.csv.zst"
    packer = zstd.ZstdCompressor()
    content = "link\n" + "".join(f"{link}\n" for link in LINKS)
    path.write_bytes(packer.compress(content.encode(), packer.FLUSH_BLOCK))  # the frame has no end
    done = harvester("run", str(path), "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 2
    assert f"{path}: cannot be read past line 41" in done.stderr
    assert len(rows(out)) == served.sandbox.requests.total() == len(LINKS)
    assert not (out / "_SUCCESS").exists()


def test_plan_counts_a_table_as_run_does(tmp_path: Path, serve: Callable[..., Served]) -> None:
    lists = [write(tmp_path, name, LINKS) for name in ("a.csv", "b.parquet")]
    options = ("--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS, "--json", "--column", "link")
    done = harvester("plan", *lists, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["list"]
    assert (found["lines"], found["duplicates"], found["invalid"], found["links"]) == (81, 40, 0, 40)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("pyarrow", "l.parquet", "parquet"),
        pytest.param(
            "backports", "l.txt.zst", "zstd", marks=pytest.mark.skipif("sys.version_info >= (3, 14)", reason="built in")
        ),
    ],
)
def test_a_missing_extra_is_named_with_its_install_line_before_the_first_call(
    tmp_path: Path, serve: Callable[..., Served], package: str, name: str, extra: str
) -> None:
    served, path = serve(), write(tmp_path, name, LINKS)
    (tmp_path / "path" / package).mkdir(parents=True)
    (tmp_path / "path" / package / "__init__.py").write_text("raise ImportError\n")
    env = {"PYTHONPATH": str(tmp_path / "path")}
    options = ("--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    done = harvester("run", write(tmp_path, "links.txt", LINKS), path, *options, env=env)
    assert (done.returncode, served.sandbox.requests.total()) == (2, 0)
    assert f"pip install 'bitly-harvester[{extra}]'" in done.stderr
    assert not (tmp_path / "out").exists()
    piped = harvester(
        "run",
        "-",
        *options,
        "--list-format",
        "lines" if extra == "zstd" else extra,
        env=env,
        stdin=Path(path).read_bytes(),
    )
    assert piped.returncode == 2
    assert f"pip install 'bitly-harvester[{extra}]'" in piped.stderr
