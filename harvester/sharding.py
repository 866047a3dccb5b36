"""Which of several workers a link belongs to, by a hash of its text that never changes."""

import re
from hashlib import blake2b
from typing import NamedTuple

from harvester.errors import UsageError

_SHARD = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


def shard_of(text: str, shards: int) -> int:
    """Return the number, from 1 to `shards`, of the shard of a text: the same on every machine and in every version.

    Links are given as rows have them in `bitlink`. Outputs were divided by this hash: another would make calls again.
    """
    return 1 + int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest()) % shards


class Shard(NamedTuple):
    """A part of a list: number `number`, from 1 on, of `shards`."""

    number: int
    shards: int

    def has(self, text: str) -> bool:
        """Return whether a text belongs to this shard."""
        return shard_of(text, self.shards) == self.number


def parse_shard(text: str) -> Shard:
    """Parse `3/8`, the third of eight shards. Raises UsageError."""
    match = _SHARD.fullmatch(text.strip())
    if not match or int(match[1]) > int(match[2]):
        raise UsageError(f"{text}: must be a shard such as 3/8, the third of eight", option="--shard")
    return Shard(int(match[1]), int(match[2]))
