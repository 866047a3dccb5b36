"""The outputs that a report is about, and the files of their rows."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from itertools import takewhile
from typing import NamedTuple

from harvester.bitly.facets import FACETS
from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import Found, Manifest
from harvester.dataset.part_publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from harvester.storage.location import FAILURES, MANIFEST, is_growing_file, is_url, normal
from harvester.storage.object_store import ObjectStorage, open_store
from harvester.storage.storage import LocalStorage, Storage
from harvester.sums.figures import Damage

_WHAT_TO_GIVE = (
    "give the run's --out (a folder, a growing file or a store's URL), a folder of outputs, or in quotes a layout such "
    "as 'lake/{facet}/dt=*'"
)


class RowFile(NamedTuple):
    """A file of rows. size: the bytes to read, None for all: what follows in a growing file is not committed.

    rows: how many it has, by the manifest; None for a file that it does not count.
    """

    name: str
    format: Format
    size: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One output. path: its path or URL. name: that path below what was asked for, as people read it.

    asked: the path as it would be typed. beside: its `_` files. rows: its parts, or the folder of its growing file.
    """

    path: str
    name: str
    asked: str
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
                yield RowFile(os.path.basename(self.path), Format.NDJSON, part.bytes, part.rows)
            elif match := PART_NAME.fullmatch(part.path):
                yield RowFile(part.path, Format(match["format"]), None, part.rows)

    def name_of(self, file: str) -> str:
        """Return what people read of one of its files."""
        return self.name if self.growing and file != FAILURES else f"{self.name}/{file}"

    def newer_parts(self) -> int:
        """Return the number of parts that are there and that the manifest does not list yet."""
        listed = {part.path for part in self.manifest.parts}
        found = [PART_NAME.fullmatch(name) for name in self.rows.names() if name not in listed]
        return sum(part is not None and part["run_id"] == self.manifest.run_id for part in found)

    @property
    def unpublished(self) -> int:
        """The calls with a row that is in none of the parts yet."""
        counts = self.manifest.dataset
        return max(counts.rows + counts.refreshed - sum(part.calls for part in self.manifest.parts), 0)

    @property
    def has_failures(self) -> bool:
        """Whether the file of the links without a row is there."""
        return FAILURES in self.beside.names()

    @property
    def without_row(self) -> int:
        """The calls that were refused or failed, and the lines that are no links, by the manifest."""
        counts, listed = self.manifest.dataset, self.manifest.list
        return counts.refused + counts.failed + (listed.invalid if listed else 0)


class Sources(NamedTuple):
    """The outputs of a layout, by facet and name. left_out: why some of what was found is none of them.

    damaged: manifests that cannot be read, with all rows of their outputs.
    """

    found: tuple[Source, ...]
    left_out: tuple[str, ...] = ()
    damaged: tuple[Damage, ...] = ()


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
    paths = list(dict.fromkeys(path for pattern in patterns for path in _paths(pattern)))
    if not paths:
        raise UsageError(_nothing_at(out, patterns))
    names = _Names(out, patterns, alone=len(paths) == 1)
    if len(paths) == 1:
        return Sources((_opened(manifests.read(paths[0]), names),))
    found, left_out, damaged = list[Source](), list[str](), list[Damage]()
    for path in paths:
        try:
            found.append(_opened(manifests.read(path), names))
        except (manifests.TableOfLinks, manifests.NewerForm) as error:
            left_out.append(names.shortened(str(error)))
        except UsageError as error:
            damaged.append(names.damage(path, str(error)))
    if not found:
        raise UsageError([*left_out, *(each.why for each in damaged)][0])
    found.sort(key=lambda source: (source.facet, source.name))
    return Sources(tuple(found), tuple(left_out), tuple(damaged))


class _Names:
    """What outputs are called: their paths below the folder that all patterns have in common.

    out: as it was typed. alone: whether it stands for one output, which is called so.
    """

    def __init__(self, out: str, patterns: Sequence[str], *, alone: bool) -> None:
        self._out, self._alone = out, alone
        segments = zip(*(_above_patterns(pattern).split("/") for pattern in patterns), strict=False)
        common = "/".join(each[0] for each in takewhile(lambda each: len({*each}) == 1, segments))
        self._typed = common.rstrip("/") or "/" * common.startswith("/")
        self._base = self._typed if is_url(out) else os.path.abspath(self._typed)

    def name(self, path: str) -> str:
        """Return what people read of an output."""
        if self._alone:
            return self._out
        path = path if is_url(path) else os.path.abspath(path)
        return path.removeprefix(self._base).strip("/") or path

    def asked(self, path: str) -> str:
        """Return an output's path as it would be typed."""
        return self._out if self._alone and not has_magic(self._out) else os.path.join(self._typed, self.name(path))

    def damage(self, path: str, why: str) -> Damage:
        """Return the damage of a manifest. path: its own, or its output's."""
        output = path.removesuffix("/" + MANIFEST)
        name = self.name(output)
        why = self.shortened(why.removeprefix(f"{output}/{MANIFEST}: ")).removeprefix(f"{name}/{MANIFEST}: ")
        return Damage(f"{name}/{MANIFEST}", self.asked(output), None, 0, why)

    def shortened(self, text: str) -> str:
        """Return a message without the folder that all outputs have in common."""
        return text.replace(self._base.rstrip("/") + "/", "")


def _above_patterns(pattern: str) -> str:
    """Return a path up to its first segment that is a pattern."""
    segments = pattern.split("/")
    first = next((number for number, text in enumerate(segments) if has_magic(text)), len(segments))
    return "/".join([*segments[:first], *([""] if 0 < first < len(segments) else [])])


def _nothing_at(out: str, patterns: Sequence[str]) -> str:
    """Return why nothing was found, and what to give."""
    name = os.path.basename(out.rstrip("/"))
    if PART_NAME.fullmatch(name) or name.startswith("_"):
        return f"{out} is a file of an output: give the output's folder, {os.path.dirname(out) or '.'}"
    if len(patterns) > 1 or has_magic(out):
        return f"no output was found at {out}: nothing that it matches has a {MANIFEST}; {_WHAT_TO_GIVE}"
    path = patterns[0]
    if os.path.exists(path) and not os.access(path, os.R_OK):
        return f"{out}: {os.strerror(errno.EACCES)}"
    if is_url(path) or os.path.isdir(path):
        return f"no output was found at {out}: neither it nor a folder below it has a {MANIFEST}; {_WHAT_TO_GIVE}"
    if os.path.exists(path):
        beside = f": {manifests.locate(path)[0]} does not exist" if is_growing_file(os.path.abspath(path)) else ""
        return f"{out} is a file, and not an output of a run{beside}; {_WHAT_TO_GIVE}"
    return f"{out} does not exist: {_WHAT_TO_GIVE}"


def _paths(pattern: str) -> list[str]:
    """Return the outputs that a pattern finds: those that it names, and those below folders that it names."""
    if is_url(pattern):
        if not pattern.partition("://")[2].strip("/"):
            raise UsageError(f"{pattern}: must name a bucket, such as s3://my-bucket")
        return list(_in_store(pattern.rstrip("/").removesuffix("/" + MANIFEST)))
    if os.path.exists(pattern) or not has_magic(pattern):
        return manifests.below(pattern) or ([pattern] if _is_begun(pattern) else [])
    found = []
    for path in sorted(glob(pattern)):
        if not os.path.basename(path).startswith(("_", ".")):
            found += manifests.below(path) or ([path] if _is_begun(path) else [])
    return found


def _is_begun(path: str) -> bool:
    return os.path.exists(manifests.locate(path)[0])


def _in_store(pattern: str) -> Iterator[str]:
    """Yield the prefixes with a manifest that a pattern matches, or that lie below one that it matches."""
    segments = pattern.split("/")
    first = next((number for number, text in enumerate(segments) if has_magic(text)), None)
    if first is None:
        yield from _below_in_store(pattern)
        return
    if first < _BEHIND_BUCKET:
        raise UsageError(f"{pattern}: a pattern stands for prefixes of one bucket, so name the bucket")
    above, wanted, below = "/".join(segments[:first]), segments[first], segments[first + 1 :]
    for name in _opened_prefix(above).folders():
        if fnmatchcase(name, wanted) and not name.startswith(("_", ".")):
            yield from _in_store("/".join([above, name, *below]))


_BEHIND_BUCKET = 3
"""The place of the first segment of a URL that is part of a prefix: `s3:`, ``, and the bucket come first."""


def _below_in_store(url: str) -> Iterator[str]:
    """Yield a prefix if it has a manifest, or else those below it that have one."""
    store = _opened_prefix(url)
    if store.get(MANIFEST) is not None:
        yield url
        return
    for name in store.folders():
        if not name.startswith(("_", ".")):
            yield from _below_in_store(f"{url}/{name}")


def _opened_prefix(url: str) -> ObjectStorage:
    """Open a prefix, or a whole bucket."""
    return open_store(normal(f"{url}/{MANIFEST}").removesuffix("/" + MANIFEST))


def _opened(found: Found, names: _Names) -> Source:
    """Return the output of a manifest.

    Raises:
        UsageError: the manifest lacks what its rows are read by; `parse` leaves that unchecked.
    """
    query, shapes = found.content.query, [shape.value for shape in Shape]
    if query.get("facet") not in FACETS or not {"unit", "units"} <= query.keys() or found.content.shape not in shapes:
        raise UsageError(f"{found.path}: not a harvester manifest (its query or its shape is not known)")
    told = (found.out, names.name(found.out), names.asked(found.out), found.content)
    if is_url(found.out):
        store = open_store(found.out)
        return Source(*told, store, store, growing=False)
    folder = os.path.dirname(found.path)
    growing = folder != found.out
    rows = os.path.dirname(found.out) if growing else found.out
    return Source(*told, LocalStorage(folder), LocalStorage(rows), growing)
