"""Where a dataset lies: an output's kind, its folders or URL, and the names of its `_` files."""

import os
import re
import shlex
from dataclasses import dataclass
from enum import StrEnum

from harvester.errors import UsageError
from harvester.jsonlines import object_in

STDOUT = "-"
GROWING_ENDINGS = (".ndjson", ".jsonl")
BESIDE = ".harvester"
"""Behind a growing file's name: the folder of its state and of its `_` files."""
MANIFEST, FAILURES, SUCCESS, CLAIM = "_manifest.json", "_failures.ndjson", "_SUCCESS", "_claim.json"
OUR_FILES = re.compile(r"_manifest\.json|journal-.*|part-[0-9a-f]+-\d{5,}\..*")
"""Names of files that show that an output was begun."""
_SCHEMES = ("s3", "gs", "az", "file")
# Characters that every store takes unencoded, so that all programs agree on an object's name:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_SAFE = re.compile(r"[A-Za-z0-9!_.*'()=,+@:/-]+")
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class OutputKind(StrEnum):
    """What the consumer gets: parts in a folder or an object store, one growing file, or rows on standard output."""

    FOLDER = "folder"
    STORE = "store"
    FILE = "file"
    STDOUT = "stdout"


@dataclass(frozen=True, slots=True)
class OutputLocation:
    """The resolved --out. out: the folder, file or URL. public: the folder of the `_` files. private: of the state.

    For an object store, public lies within private: parts and `_` files are written there and uploaded from there.
    """

    kind: OutputKind
    out: str
    public: str
    private: str

    @property
    def name(self) -> str:
        """The output's name in ledger and manifest, with bytes that are not UTF-8 escaped."""
        return _as_text(self.out)

    @property
    def work_dir(self) -> str | None:
        """The manifest's `work_dir`; None where the state lies inside or beside the output."""
        inside = os.path.dirname(self.private) == self.out or self.private == self.public
        return None if inside else _as_text(self.private)

    @property
    def in_parts(self) -> bool:
        """True when rows are published in immutable parts."""
        return self.kind in {OutputKind.FOLDER, OutputKind.STORE}

    @property
    def in_store(self) -> bool:
        """True when the output lies in an object store."""
        return self.kind is OutputKind.STORE

    @property
    def kept(self) -> bool:
        """False for rows on standard output, of which nothing is left when the run ends."""
        return self.kind is not OutputKind.STDOUT

    @property
    def disk(self) -> str:
        """A path on the local disk that the output is written to."""
        return self.private if self.in_store else self.out

    @property
    def begun(self) -> bool:
        """True when the private folder exists."""
        return os.path.isdir(self.private)

    @property
    def noted_work_dir(self) -> str | None:
        """The --work-dir that the output's manifest names; None without one."""
        path = os.path.join(self.public, MANIFEST)
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as stream:
            named = object_in(stream.read()).get("work_dir")
        return named if isinstance(named, str) else None

    @property
    def repair_advice(self) -> str:
        """What to do about a ledger that is lost or damaged, as a sentence."""
        work_dir = f" --work-dir {shlex.quote(self.private)}" if self.work_dir else ""
        return (
            f"`harvester repair {shlex.quote(self.out)}{work_dir}` shows what can be rebuilt from rows, journal and "
            "failures; --apply rebuilds it"
        )

    @property
    def ledger(self) -> str:
        """The ledger's path."""
        return os.path.join(self.private, "ledger.sqlite")


def _as_text(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def is_growing_file(path: str) -> bool:
    """True for an absolute path by which --out means one growing file."""
    return path.lower().endswith(GROWING_ENDINGS) and not os.path.isdir(path)


def followed(path: str) -> str:
    """Return the file that a path leads to. A growing file's state lies beside it, whatever link its --out names."""
    return os.path.realpath(path) if os.path.islink(path) else path


def is_own_link(path: str) -> bool:
    """Return whether a symbolic link was made by this user, by root or by the owner of its folder.

    Any other may be a trap: https://docs.kernel.org/admin-guide/sysctl/fs.html#protected-symlinks.
    """
    return os.lstat(path).st_uid in {os.geteuid(), 0, os.stat(os.path.dirname(path)).st_uid}


def is_url(out: str) -> bool:
    """True for anything that looks like a URL, including those of stores that harvester does not support."""
    return _ANY_SCHEME.match(out) is not None


def normal(url: str, option: str = "--out") -> str:
    """Return a store's URL in its normal form, without a trailing slash. option: the one that errors name.

    Raises:
        UsageError: another scheme, no bucket or prefix, or characters that programs encode in different ways.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{scheme}://: harvester writes to s3://, gs:// and az://, to a folder or to a file", option=option
        )
    if "@" in rest.split("/")[0]:
        raise UsageError(f"{scheme}://: credentials belong in the environment, never in the address", option=option)
    path = rest.rstrip("/")
    bucket, _, prefix = path.partition("/")
    if (not bucket and scheme != "file") or not prefix:
        raise UsageError(f"{url}: must be a bucket and a prefix, such as {scheme}://my-bucket/bitly", option=option)
    if not _SAFE.fullmatch(path) or any(part in {"", ".", ".."} for part in prefix.split("/")):
        raise UsageError(
            f"{url}: a prefix may have letters, digits and !_.*'()=,+@:- between single slashes, in ASCII",
            option="--out",
        )
    return f"{scheme}://{path}"
