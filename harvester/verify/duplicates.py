"""Search for repeated keys in bounded memory: keys are grouped by their first byte, and spilled to disk."""

import tempfile
from collections import Counter
from typing import BinaryIO

KEY_BYTES = 16
_MOST_IN_MEMORY = 2 * 1024 * 1024
"""Number of keys; beyond it they are written to a temporary file."""


class DuplicateFinder:
    """Finds repeated keys of 16 bytes, such as digests. `close` deletes the temporary file."""

    def __init__(self, most_in_memory: int = _MOST_IN_MEMORY) -> None:
        self._most = most_in_memory
        self._buckets = [bytearray() for _ in range(256)]
        self._in_memory = 0
        self._scratch: BinaryIO | None = None
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(256)]

    def add(self, key: bytes) -> None:
        """Add a key.

        Raises:
            OSError: the temporary file cannot be written.
        """
        self._buckets[key[0]] += key
        self._in_memory += 1
        if self._in_memory >= self._most:
            self._spill()

    def repeated(self, most: int) -> tuple[list[bytes], int]:
        """Return repeated keys, at most `most` of them, and the number of all repeated keys."""
        some: list[bytes] = []
        count = 0
        for first in range(256):
            data = self._all_of(first)
            keys = [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]
            if len(set(keys)) == len(keys):
                continue
            found = [key for key, times in Counter(keys).items() if times > 1]
            count += len(found)
            some += found[: most - len(some)]
        return some, count

    def close(self) -> None:
        """Delete the temporary file, if there is one."""
        if self._scratch is not None:
            self._scratch.close()

    def _spill(self) -> None:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryFile(prefix="harvester-")  # noqa: SIM115 - closed by close
        end = self._scratch.seek(0, 2)
        for bucket, extents in zip(self._buckets, self._extents, strict=True):
            self._scratch.write(bucket)
            extents.append((end, len(bucket)))
            end += len(bucket)
            bucket.clear()
        self._in_memory = 0

    def _all_of(self, first: int) -> bytes:
        found = []
        for place, size in self._extents[first]:
            assert self._scratch is not None
            self._scratch.seek(place)
            found.append(self._scratch.read(size))
        return b"".join([*found, self._buckets[first]])
