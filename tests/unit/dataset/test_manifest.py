"""Manifests that another program has written, cut or damaged."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.dataset.manifest import Manifest, parse
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
