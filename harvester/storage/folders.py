"""The folders that --out, --work-dir and --state-dir mean, resolved and checked before anything is made."""

import errno
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from harvester.errors import HarvesterError, OutputError, UsageError, as_output_error
from harvester.storage.filesystem import inherit_folder_mode, kind_of, make_folder, remove_empty
from harvester.storage.location import (
    BESIDE,
    OUR_FILES,
    STDOUT,
    OutputKind,
    OutputLocation,
    followed,
    is_growing_file,
    is_own_link,
    is_url,
    normal,
)
from harvester.storage.scratch import scratch_folder

BUDGET_FILE = "budget.sqlite"
_STDOUT_PATH = re.compile(r"/dev/stdout|/dev/fd/1|/proc/(self|\d+)/fd/1")
_YOUNG_SECONDS = 5.0
"""A younger file may be one that another process is about to fill."""
# An --out with such an ending was meant as a file, in a format that harvester does not write.
_FILE_ENDINGS = (".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".zip", ".bz2", ".xz", ".parquet", ".avro", ".orc")
# SQLite's WAL needs shared memory, and the dataset's lock a kernel that knows every process:
# https://www.sqlite.org/wal.html ("does not work over a network filesystem").
_NETWORK = frozenset({
    "nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afpfs", "webdav", "davfs", "9p", "afs", "ceph",
    "glusterfs", "lustre", "beegfs", "gpfs", "ocfs2", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone",
    "fuse.goofys", "fuse.mountpoint-s3", "fuse.ceph", "fuse.glusterfs", "fuse.davfs2", "fuse.blobfuse",
    "fuse.blobfuse2", "fuse.juicefs", "macfuse", "osxfuse",
})  # fmt: skip


@contextmanager
def located(out: str, work_dir: str | None = None) -> Iterator[OutputLocation]:
    """Resolve --out and --work-dir; for standard output the state lies in a folder that is deleted with this context.

    Raises:
        UsageError: as `resolve` does. OutputError: that folder cannot be made.
    """
    if out != STDOUT:
        yield resolve(out, work_dir)
        return
    with scratch_folder(work_dir) as private:
        yield OutputLocation(OutputKind.STDOUT, STDOUT, private, private)


def resolve(out: str, work_dir: str | None = None) -> OutputLocation:
    """Resolve an --out that is no standard output, and --work-dir, without making anything.

    Raises:
        UsageError: out is empty, has an ending that harvester does not write, or is something else than a folder or a
        file; or the private state would lie on a network file system.
    """
    if not out:
        raise UsageError(": must be a folder, a file that ends in .ndjson or .jsonl, or -", option="--out")
    for option, path in (("--out", out), ("--work-dir", work_dir or "")):
        if "\0" in path:
            raise UsageError(": a path cannot contain NUL", option=option)
    private = os.path.abspath(work_dir) if work_dir else None
    location = _in_store(normal(out), private) if is_url(out) else _on_disk(os.path.abspath(out), private)
    _check_local(location.private)
    return location


def _in_store(url: str, private: str | None) -> OutputLocation:
    if not private:
        raise UsageError(
            f"{url} needs a --work-dir, a folder on a local disk that is kept from run to run: it records what was "
            "paid for and published, such as --work-dir /var/lib/harvester/bitly",
            option="--out",
        )
    return OutputLocation(OutputKind.STORE, url, os.path.join(private, "public"), private)


def _on_disk(out: str, private: str | None) -> OutputLocation:
    _refuse_special(out)
    if is_growing_file(out):
        out = _growing_file(out)
        public = out + BESIDE
        return OutputLocation(OutputKind.FILE, out, public, private or public)
    if not os.path.isdir(out):
        if os.path.islink(out) and not os.path.exists(out):
            raise UsageError(
                f"{out} is a symbolic link to {os.readlink(out)}, which does not exist: create that folder first"
            )
        if os.path.exists(out):
            raise UsageError(f"{out} is a file; --out takes a folder, a file that ends in .ndjson or .jsonl, or -")
        if out.lower().endswith(_FILE_ENDINGS):
            raise UsageError(
                f"{out}: {os.path.splitext(out)[1]} files are not supported; --out takes a folder, a file that ends "
                "in .ndjson or .jsonl, or - for standard output"
            )
    return OutputLocation(OutputKind.FOLDER, out, out, private or os.path.join(out, "_harvester"))


def _refuse_special(out: str) -> None:
    """Raise UsageError for a path of something that is neither a folder nor a file."""
    try:
        mode = os.stat(out).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        return
    if _STDOUT_PATH.fullmatch(out):
        raise UsageError(f"{out}: for rows on standard output, use -", option="--out")
    if stat.S_ISSOCK(mode):
        then = "name -, and pipe the rows into a program that writes to it"
    else:
        then = f"to send rows there without keeping them, use --out - > {shlex.quote(out)}"
    if not stat.S_ISREG(mode):
        raise UsageError(f"{out} is {kind_of(mode)}, neither a folder nor a file: {then}", option="--out")


def _growing_file(out: str) -> str:
    """Return the file that an --out names, itself or by a symbolic link.

    Raises:
        UsageError: the link is not to be followed, or the state lies beside the link.
    """
    if not os.path.islink(out):
        return out
    file = followed(out)
    if not is_own_link(out):
        raise UsageError(f"{out} is a symbolic link that another user has made: name the file itself", option="--out")
    if os.path.islink(file) or not is_growing_file(file):
        raise UsageError(
            f"{out} is a symbolic link to {file}: it must lead to a file that ends in .ndjson or .jsonl",
            option="--out",
        )
    if os.path.isdir(out + BESIDE):
        raise UsageError(
            f"{out} is a symbolic link, and its state lies beside it instead of beside {file}: mv "
            f"{shlex.quote(out + BESIDE)} {shlex.quote(file + BESIDE)}, then run the same command again",
            option="--out",
        )
    return file


def refuse_second_work_dir(location: OutputLocation) -> None:
    """Raise UsageError if the output's state lies inside or beside it, and --work-dir names another folder."""
    folder = location.public if location.kind is OutputKind.FILE else os.path.join(location.public, "_harvester")
    inside = os.path.join(folder, "ledger.sqlite")
    if location.ledger != inside and os.path.exists(inside):
        raise UsageError(f"{location.out} keeps its state in {folder}: leave --work-dir out")


def has_ledger(location: OutputLocation) -> bool:
    """Return whether the output has a ledger. Raises OutputError if its folder cannot be looked into."""
    with as_output_error(location.private):
        try:
            os.lstat(location.ledger)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


@contextmanager
def made_folders(location: OutputLocation) -> Iterator[None]:
    """Make an output's folders; an error in the context removes those that were made and are empty.

    Raises:
        OutputError: they cannot be made; or the output was begun before, and its ledger is lost. UsageError: it is
        another program's file. Nothing was made then.
    """
    if not has_ledger(location):
        try:
            check_unused(location)
        except HarvesterError:
            if not has_ledger(location):  # else another process has begun the output just now
                raise
    made: list[str] = []
    try:
        with as_output_error(location.out):
            made += make_folder(location.public)
            made += make_folder(location.private)
        yield
    except HarvesterError:
        remove_empty(made)
        raise


def owner_of_state(location: OutputLocation, begun: str) -> str | None:
    """Return the other output that a state belongs to; None if it is this one's, perhaps under an earlier name.

    begun: the name of the output that the state was begun for.
    """
    if begun == location.name:
        return None
    if os.path.commonpath([location.private, location.public]) != location.public:
        return begun
    other = begun + BESIDE if location.kind is OutputKind.FILE else os.path.join(begun, "_harvester")
    shared = os.path.realpath(other) == os.path.realpath(location.private)
    return begun if shared and os.path.realpath(begun) != os.path.realpath(location.out) else None


def check_unused(location: OutputLocation) -> None:
    """Check that an output without a ledger was never begun.

    Raises:
        OutputError: it was, so its ledger is lost, or in another --work-dir. UsageError: it is another program's.
    """
    with as_output_error(location.out):
        folders = filter(os.path.isdir, (location.public, location.private))
        names = {name for folder in folders for name in os.listdir(folder)}
        work_dir = location.noted_work_dir or location.private
    if any(map(OUR_FILES.fullmatch, names)):
        if os.path.abspath(work_dir) != location.private:
            asked = f"--work-dir {shlex.quote(work_dir)}"
            raise OutputError(f"{location.out} was started with {asked}, where its ledger is: add {asked}")
        state = "empty" if has_ledger(location) else "missing"
        raise OutputError(
            f"{location.out} was started before, and its ledger {location.ledger} is {state}. It records which "
            f"calls were paid for: restore it (was there a --work-dir?). {location.repair_advice}. Or keep this "
            "output as it is and start a new --out with the links that are missing from it"
        )
    if others := sorted(name for name in names if name.startswith("part-")):
        more = f" and {len(others) - 1:,} more" if others[1:] else ""
        raise UsageError(
            f"{location.out} has files of another program, which a loader would take for rows of this output "
            f"({others[0]}{more}): use another --out"
        )
    if location.kind is OutputKind.FILE and os.path.exists(location.out) and os.path.getsize(location.out):
        raise UsageError(
            f"{location.out} is not empty, and has no harvester state beside it: use another --out; or if it is "
            f"harvester's, {location.repair_advice}"
        )


def state_folder(asked: str | None, private: str | Callable[[], str], warn: Callable[[str], None]) -> str:
    """Return the folder of the state that all runs on this machine share: --state-dir, or the user's state folder.

    If the user's is not writable, as with a read-only home, and holds no budget, warn and return the private folder.
    private: its path, or a function that makes it on demand.

    Raises:
        UsageError: --state-dir is on a network file system. OutputError: --state-dir cannot be written, or the user's
        folder cannot and holds a budget.
    """
    try:
        import platformdirs  # noqa: PLC0415 - commands that only read an output do not need it

        folder = os.path.abspath(asked) if asked else platformdirs.user_state_dir("harvester", appauthor=False)
    except RuntimeError:  # a user without a home, as containers have them
        folder = os.path.expanduser("~")
    budget = os.path.join(folder, BUDGET_FILE)
    if asked is not None:
        _check_local(folder)
    try:
        if not os.path.isabs(folder):
            raise NotADirectoryError(errno.ENOTDIR, "this user has no home folder")
        if asked is None:
            _check_local(folder)
        make_folder(folder, 0o700)  # durable with its parents: a power cut must not take the month's count away
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            with tempfile.TemporaryFile(dir=folder):  # says why
                pass
        _make_budget_file(budget, warn)
        _check_beside(budget)
    except (OSError, UsageError) as error:
        why = getattr(error, "strerror", None) or "a network file system"
        if (os.path.isabs(folder) and _may_be_there(budget)) or asked is not None:
            raise _unwritable(folder, budget, why, error) from error
        private = private() if callable(private) else private
        warn(
            f"{folder} cannot contain the budget ({why}): it is kept in {private}, and the calls of other outputs' "
            "runs are not counted there. Use a --state-dir that is writable"
        )
        return private
    return folder


def _unwritable(folder: str, budget: str, why: str, error: Exception) -> OutputError:
    """Return the error for a state folder that no other may stand in for: each output would spend the month again."""
    file = getattr(error, "filename", None)
    if os.path.isabs(folder) and _may_be_there(budget):
        named = file if isinstance(file, str) and file.startswith(budget) else budget
        has = "" if named == budget else f"{budget} "
        cure = "move it away" if os.path.isdir(named) else "make it writable again"
        return OutputError(
            f"{named} cannot be written ({why}), and {has}has the counts of this month, hour and minute: {cure}. "
            "Or use another --state-dir, whose counts start from zero, and a smaller --per-month"
        )
    why = f"{file}: {why}" if isinstance(file, str) and file != folder else why
    return OutputError(f"--state-dir {folder}: {why}. It cannot contain the budget: use a writable folder")


def _may_be_there(path: str) -> bool:
    """Return whether a file is there, or may be because its folder cannot be looked into."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        try:
            os.stat(os.path.join(os.path.expanduser("~"), "."))
        except OSError:  # a home that this user may not enter is another user's, as in containers
            return False
    return True


def _make_budget_file(path: str, warn: Callable[[str], None]) -> None:
    """Make the file, for whoever may use its folder; warn if it was made a while ago and has been emptied since.

    Raises:
        OutputError: it cannot be made.
    """
    if not os.path.lexists(path):
        with suppress(FileExistsError):  # another process has made it a moment before
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            inherit_folder_mode(path, descriptor)
            os.close(descriptor)
    elif os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", path)
    elif not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a file", path)
    elif os.path.getsize(path) == 0 and time.time() - os.path.getmtime(path) > _YOUNG_SECONDS:
        warn(
            f"{path} was empty: the counts of this month, hour and minute are lost, and start from zero "
            "now. Restore a backup of it, or set --per-month to what is left"
        )


def _check_beside(budget: str) -> None:
    """Check that this user can write to the budget's file and to SQLite's two beside it, which have its counts, too.

    Raises:
        OSError: one of them is no file, or may not be written. SQLite's own error would not say which.
    """
    for path in (budget, f"{budget}-wal", f"{budget}-shm"):
        if os.path.lexists(path):
            if not os.path.isfile(path):
                raise OSError(errno.EINVAL, "it is not a file", path)
            if not os.access(path, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def lock_folder(state: str, server: str) -> str:
    """Return the folder of a server's connection locks in a state folder, made if missing.

    Raises:
        OutputError: it cannot be made.
    """
    folder = state
    for name in ("connections", server.replace(":", "-")):
        folder = os.path.join(folder, name)
        if os.path.islink(folder):
            raise OutputError(
                f"{folder} is a symbolic link, which could lead other users' runs to other locks: remove it, or use "
                "another --state-dir"
            )
        if not os.path.isdir(folder):
            with as_output_error(folder):
                os.makedirs(folder, exist_ok=True)
                inherit_folder_mode(folder)
    return folder


def _check_local(private: str) -> None:
    """Raise UsageError for a folder on a file system that is known to be a network one."""
    with suppress(OSError):
        if os.major(os.stat(private).st_dev):  # a block device's
            return
    import psutil  # noqa: PLC0415 - commands that only read an output do not need it

    path = os.path.join(os.path.realpath(private), "")
    mounts = [p for p in psutil.disk_partitions(all=True) if path.startswith(os.path.join(p.mountpoint, ""))]
    # Of several mounts on one path the last one is visible.
    found = max(reversed(mounts), key=lambda partition: len(partition.mountpoint), default=None)
    if found and found.fstype.lower() in _NETWORK:
        raise UsageError(
            f"{private} is on {found.fstype}, a network file system, where SQLite's locks do not work: "
            "use a folder on a local disk"
        )
