"""A link's shard: the same everywhere and for ever, and evenly spread."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.errors import UsageError
from harvester.links.batch import Shard, batch_of_lines, batch_of_shard, parse_shard, shard_of


def test_a_links_shard_never_changes() -> None:
    links = ["bit.ly/a", "bit.ly/b", "bit.ly/3xYzAbC", "es.pn/SuperBowl", "bit.ly/ünïcode"]
    assert [shard_of(link, 8) for link in links] == [2, 1, 1, 5, 7]


@given(st.text(), st.integers(1, 1000))
def test_every_text_belongs_to_one_shard(text: str, shards: int) -> None:
    number = shard_of(text, shards)
    assert 1 <= number <= shards
    assert Shard(number, shards).has(text)


def test_shards_are_of_even_size() -> None:
    sizes = Counter(shard_of(f"bit.ly/{number:x}", 8) for number in range(8000))
    assert len(sizes) == 8
    assert all(900 < size < 1100 for size in sizes.values())


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "3/0", "a/b", "-1/8", "3/8/2", "1.5/8"])
def test_what_is_no_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="3/8, the third of eight") as error:
        parse_shard(text)
    assert error.value.option == "--shard"


def test_the_shards_of_a_batch_have_each_line_once_and_count_for_themselves() -> None:
    lines = [f"bit.ly/{number}".encode() for number in range(40)]
    lines += [b"https://bit.ly/3", b"", b"# a comment", b"no link", b"neither is this"]
    batch = batch_of_lines(lines, "list", 1)
    parts = [batch_of_shard(batch, Shard(number, 3)) for number in (1, 2, 3)]
    assert sorted(link.line for part in parts for link in part.links) == sorted(link.line for link in batch.links)
    assert sorted(bad.line for part in parts for bad in part.invalid) == [44, 45]
    for part in parts:
        assert part.links
        assert part.lines == part.blank + part.comments + part.headers + len(part.invalid) + len(part.links)
        assert part.last == batch.last
    (of_3,) = [part for part in parts if any(link.bitlink == "bit.ly/3" for link in part.links)]
    assert len([link for link in of_3.links if link.bitlink == "bit.ly/3"]) == 2  # however they are written
    assert batch_of_shard(batch, None) is batch
