"""Where an output's manifest is, and manifests that another program has written, cut or damaged."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.dataset.manifest import Manifest, NewerForm, below, locate, parse, read
from harvester.errors import UsageError
from harvester.sandbox import Sandbox, SandboxOptions, serving
from tests.conftest import quick_folder
from tests.support.in_process import harvest
from tests.support.servers import in_thread

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each, max_size=3),
    max_leaves=9,
)


def parsed(content: bytes) -> Manifest | None:
    try:
        return parse(content, "_manifest.json")
    except UsageError:
        return None


@pytest.fixture(scope="module")
def whole() -> Iterator[bytes]:
    """A run's manifest."""
    options = SandboxOptions(per_minute=0, per_hour=0, per_month=0, latency_ms=0, errors=0.0)
    with quick_folder() as folder, in_thread(serving(Sandbox(options))) as url:
        asyncio.run(harvest(url, Path(folder), ["a", "b", "missing-1"]))
        yield (Path(folder) / "out" / "_manifest.json").read_bytes().rstrip()


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every object or list in a JSON value, with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys += range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in places_in(value[key])]


@given(st.binary(max_size=60) | JSON.map(lambda each: json.dumps(each).encode()))
def test_any_bytes_are_no_manifest(content: bytes) -> None:
    assert parsed(content) is None


@given(st.data())
def test_a_manifest_with_any_other_value_is_read_and_written_or_refused(whole: bytes, data: st.DataObject) -> None:
    content = json.loads(whole)
    holder, key = data.draw(st.sampled_from(places_in(content)))
    if data.draw(st.booleans()):
        holder[key] = data.draw(JSON)
    else:
        del holder[key]
    if (found := parsed(json.dumps(content).encode())) is not None:
        assert parsed(json.dumps(found.to_json()).encode()) == found


def test_a_manifest_that_is_cut_is_refused(whole: bytes) -> None:
    assert parsed(whole) is not None
    assert all(parsed(whole[:size]) is None for size in range(len(whole)))


# --- where it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "path", "named"),
    [
        ("/lake", "/lake/_manifest.json", "/lake"),
        ("/lake/_manifest.json", "/lake/_manifest.json", "/lake"),
        ("/x.ndjson", "/x.ndjson.harvester/_manifest.json", "/x.ndjson"),
        ("/x.JSONL", "/x.JSONL.harvester/_manifest.json", "/x.JSONL"),
        ("/x.ndjson.harvester/_manifest.json", "/x.ndjson.harvester/_manifest.json", "/x.ndjson"),
        ("/lake.harvester", "/lake.harvester/_manifest.json", "/lake.harvester"),
    ],
)
def test_a_manifest_lies_in_a_folder_and_beside_a_growing_file(out: str, path: str, named: str) -> None:
    assert locate(out) == (path, named)


def test_rows_on_standard_output_have_no_manifest() -> None:
    with pytest.raises(UsageError, match="rows on standard output have no manifest"):
        locate("-")
    assert below("-") == []


def test_manifests_below_a_folder_are_found_but_in_outputs_and_hidden_folders(tmp_path: Path) -> None:
    for folder in ("b/2", "b/1", "a", "a/inner", "_x", ".y"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "_manifest.json").touch()
    assert below(str(tmp_path)) == [str(tmp_path / each / "_manifest.json") for each in ("a", "b/1", "b/2")]
    assert below(str(tmp_path / "a")) == below("s3://bucket/lake") == below(str(tmp_path / "none")) == []


def test_a_manifest_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path) -> None:
    manifest = tmp_path / "_manifest.json"
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match=f"no run has started at {out}: {out}/_manifest.json does not exist"):
            read(str(out))
    os.mkfifo(manifest)
    with pytest.raises(UsageError, match=f"{manifest}: not a file"):
        read(str(tmp_path))
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(UsageError, match=f"{manifest}: Too many levels"):
        read(str(tmp_path))


def test_a_manifest_is_read_by_its_folder_and_by_its_own_path(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "_manifest.json"
    path.write_bytes(whole)
    for out in (tmp_path, path):
        assert read(str(out)) == (str(tmp_path), str(path), parse(whole, ""))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run_id": None}, r"m.json: not a harvester manifest \(run_id is not as expected\)"),
        ({"given_up": -1}, r"\(given_up is not as expected\)"),
        ({"parts": {}}, r"\(parts is not a list\)"),
        ({"dataset": []}, r"\(dataset is not an object\)"),
        ({"dataset": {"calls": 1}}, r"\(dataset.rows is missing\)"),
        ({"rows": "links"}, "m.json: describes a table of links"),
        ({"schema_version": 99, "tool": "harvester 9"}, "m.json: written by harvester 9, in a newer format"),
    ],
    ids=range(7),
)
def test_a_manifest_of_another_form_is_refused_by_what_differs(whole: bytes, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        parse(json.dumps(json.loads(whole) | changes).encode(), "m.json")
    assert isinstance(refused.value, NewerForm) is ("schema_version" in changes)
    for other, form in ((b"[]", "it is not an object"), (b"{", "not JSON")):
        with pytest.raises(UsageError, match=form):
            parse(other, "m.json")
