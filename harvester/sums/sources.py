"""The outputs that a report is about, and the files of their rows."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from typing import NamedTuple

from harvester.bitly.facets import FACETS
from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import Found, Manifest
from harvester.dataset.part_publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from harvester.storage.location import FAILURES, MANIFEST, is_url, normal
from harvester.storage.object_store import open_store
from harvester.storage.storage import LocalStorage, Storage


class RowFile(NamedTuple):
    """A file of rows. size: the bytes to read, None for all: what follows in a growing file is not committed."""

    name: str
    format: Format
    size: int | None


@dataclass(frozen=True, slots=True)
class Source:
    """One output. name: its path or URL. beside: its `_` files. rows: its parts, or the folder of its growing file."""

    name: str
    manifest: Manifest
    beside: Storage
    rows: Storage
    growing: bool

    @property
    def facet(self) -> str:
        """The facet of its rows."""
        return str(self.manifest.query["facet"])

    @property
    def is_refreshed(self) -> bool:
        """Whether a link may have several rows, of which the newest counts."""
        return self.manifest.refresh is not None or self.manifest.dataset.refreshed > 0

    def files(self) -> Iterator[RowFile]:
        """Yield the files of rows that the manifest lists."""
        for part in self.manifest.parts:
            if self.growing:
                yield RowFile(os.path.basename(self.name), Format.NDJSON, part.bytes)
            elif match := PART_NAME.fullmatch(part.path):
                yield RowFile(part.path, Format(match["format"]), None)

    def newer_parts(self) -> int:
        """Return the number of parts that are there and that the manifest does not list yet."""
        listed = {part.path for part in self.manifest.parts}
        found = [PART_NAME.fullmatch(name) for name in self.rows.names() if name not in listed]
        return sum(part is not None and part["run_id"] == self.manifest.run_id for part in found)

    @property
    def has_failures(self) -> bool:
        """Whether the file of the links without a row is there."""
        return FAILURES in self.beside.names()


class Sources(NamedTuple):
    """The outputs of a layout, by facet and name. left_out: why some of what was found is none of them."""

    found: tuple[Source, ...]
    left_out: tuple[str, ...]


def sources_at(out: str, patterns: Sequence[str]) -> Sources:
    """Return the outputs that patterns find: a folder, a growing file, a store's URL, a folder of outputs, or a layout.

    In a layout `*`, `?` and `[…]` match as in a shell. out: what the patterns were made of, for messages.

    Raises:
        UsageError: there is none, or the only one cannot be read. OutputError: the place cannot be read.
    """
    try:
        return _sources_at(out, patterns)
    except OSError as error:
        raise OutputError(f"{error.filename or out}: {error.strerror or error}") from error


def _sources_at(out: str, patterns: Sequence[str]) -> Sources:
    paths = [path for pattern in patterns for path in _paths(pattern, exact=len(patterns) == 1)]
    if not paths:
        raise UsageError(f"no run has started at {out}: nothing there has a {MANIFEST}")
    if len(paths) == 1:
        return Sources((_opened(manifests.read(paths[0])),), ())
    found, left_out = [], []
    for path in paths:
        try:
            found.append(_opened(manifests.read(path)))
        except UsageError as error:
            left_out.append(str(error))
    if not found:
        raise UsageError(left_out[0])
    return Sources(tuple(sorted(found, key=lambda source: (source.facet, source.name))), tuple(left_out))


def _paths(pattern: str, *, exact: bool) -> list[str]:
    """Return the outputs that a pattern finds. exact: whether a plain path stands for itself if nothing is there."""
    if is_url(pattern):
        return [pattern] if exact and not has_magic(pattern) else list(_in_store(pattern))
    if os.path.exists(pattern) or not has_magic(pattern):
        return manifests.below(pattern) or ([pattern] if exact or _is_begun(pattern) else [])
    found = []
    for path in sorted(glob(pattern)):
        if not os.path.basename(path).startswith(("_", ".")):
            found += manifests.below(path) or ([path] if _is_begun(path) else [])
    return found


def _is_begun(path: str) -> bool:
    return os.path.exists(manifests.locate(path)[0])


def _in_store(pattern: str) -> Iterator[str]:
    """Yield the prefixes of a store that a pattern matches, and that have a manifest."""
    segments = pattern.split("/")
    first = next((number for number, text in enumerate(segments) if has_magic(text)), None)
    if first is None:
        if open_store(normal(pattern)).get(MANIFEST) is not None:
            yield pattern
        return
    above, wanted, below = "/".join(segments[:first]), segments[first], segments[first + 1 :]
    for name in open_store(normal(above)).folders():
        if fnmatchcase(name, wanted) and not name.startswith(("_", ".")):
            yield from _in_store("/".join([above, name, *below]))


def _opened(found: Found) -> Source:
    """Return the output of a manifest.

    Raises:
        UsageError: the manifest lacks what its rows are read by; `parse` leaves that unchecked.
    """
    query, shapes = found.content.query, [shape.value for shape in Shape]
    if query.get("facet") not in FACETS or not {"unit", "units"} <= query.keys() or found.content.shape not in shapes:
        raise UsageError(f"{found.path}: not a harvester manifest (its query or its shape is not known)")
    if is_url(found.out):
        store = open_store(found.out)
        return Source(found.out, found.content, store, store, growing=False)
    folder = os.path.dirname(found.path)
    growing = folder != found.out
    rows = os.path.dirname(found.out) if growing else found.out
    return Source(found.out, found.content, LocalStorage(folder), LocalStorage(rows), growing)
