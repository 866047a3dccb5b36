"""The folders that --out, --work-dir and --state-dir mean, resolved and checked before anything is made."""

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harvester.errors import OutputError, UsageError, as_output_error
from harvester.storage.filesystem import inherit_folder_mode, make_folder
from harvester.storage.location import MANIFEST, STDOUT, OutputKind, OutputLocation, is_growing_file, is_url, normal
from harvester.storage.scratch import scratch_folder

BUDGET_FILE = "budget.sqlite"
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
        raise UsageError(
            ": a folder, a file that ends in .ndjson or .jsonl, or - was expected, not nothing", option="--out"
        )
    private = os.path.abspath(work_dir) if work_dir else None
    location = _in_store(normal(out), private) if is_url(out) else _on_disk(os.path.abspath(out), private)
    _check_local(location.private)
    return location


def _in_store(url: str, private: str | None) -> OutputLocation:
    if not private:
        raise UsageError(
            f"{url} needs a --work-dir, a folder on a local disk that is kept from run to run: it holds what was "
            "paid for and published, such as --work-dir /var/lib/harvester/bitly",
            option="--out",
        )
    return OutputLocation(OutputKind.STORE, url, os.path.join(private, "public"), private)


def _on_disk(out: str, private: str | None) -> OutputLocation:
    if is_growing_file(out):
        public = out + ".harvester"
        return OutputLocation(OutputKind.FILE, out, public, private or public)
    if not os.path.isdir(out):
        if os.path.exists(out):
            raise UsageError(f"{out} is a file; --out takes a folder, a file that ends in .ndjson or .jsonl, or -")
        if out.lower().endswith(_FILE_ENDINGS):
            raise UsageError(
                f"{out}: harvester writes no {os.path.splitext(out)[1]} file; --out takes a folder, a file that ends "
                "in .ndjson or .jsonl, or - for standard output"
            )
    return OutputLocation(OutputKind.FOLDER, out, out, private or os.path.join(out, "_harvester"))


def refuse_second_work_dir(location: OutputLocation) -> None:
    """Raise UsageError if the output's state lies inside or beside it, and --work-dir names another folder."""
    folder = location.public if location.kind is OutputKind.FILE else os.path.join(location.public, "_harvester")
    inside = os.path.join(folder, "ledger.sqlite")
    if location.ledger != inside and os.path.exists(inside):
        raise UsageError(f"{location.out} keeps its state in {folder}: leave --work-dir out")


def check_unused(location: OutputLocation) -> None:
    """Check that an output without a ledger was never begun.

    Raises:
        OutputError: it was, so its ledger is lost. UsageError: it is another program's file.
    """
    names = {*os.listdir(location.public), *os.listdir(location.private)}
    if MANIFEST in names or any(name.startswith(("journal-", "part-")) for name in names):
        raise OutputError(
            f"{location.out} was begun before, and its ledger {location.ledger} is gone. Without it nobody knows which "
            f"calls were paid for. Put it back (was there a --work-dir?). {location.repair_advice}. Or keep this "
            "output as it is and begin a new --out with the links that it lacks"
        )
    if location.kind is OutputKind.FILE and os.path.exists(location.out) and os.path.getsize(location.out):
        raise UsageError(
            f"{location.out} is not empty, and has no state of harvester's beside it: name another --out; or if it is "
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
        with tempfile.TemporaryFile(dir=folder):
            pass
        _make_budget_file(budget, warn)
    except (OSError, UsageError) as error:
        why = getattr(error, "strerror", None) or "a network file system"
        # Elsewhere nothing would be known of what was spent: each output would spend the month again.
        if os.path.isabs(folder) and _may_be_there(budget):
            raise OutputError(
                f"{budget} cannot be written ({why}), and holds what was spent of this month, hour and minute: make it "
                "writable again. Or name another --state-dir, where counting begins anew, and with --per-month what is "
                "left"
            ) from error
        if asked is not None:
            raise OutputError(
                f"--state-dir {folder} cannot hold the budget ({why}): name one that can be written"
            ) from error
        private = private() if callable(private) else private
        warn(
            f"{folder} cannot hold the budget ({why}): it is kept in {private}, and what the runs of other outputs "
            "spend is not seen. Name a --state-dir that can be written"
        )
        return private
    return folder


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
    if not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        inherit_folder_mode(path)
    elif not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no file", path)
    elif os.path.getsize(path) == 0 and time.time() - os.path.getmtime(path) > _YOUNG_SECONDS:
        warn(
            f"{path} was empty: what was spent of this month, hour and minute is not known any more, and is counted "
            "from now on. Put a backup of it back, or name with --per-month what is left"
        )


def lock_folder(state: str, server: str) -> str:
    """Return the folder of a server's connection locks in a state folder, made if missing.

    Raises:
        OutputError: it cannot be made.
    """
    folder = state
    for name in ("connections", server.replace(":", "-")):
        folder = os.path.join(folder, name)
        if not os.path.isdir(folder):
            with as_output_error(folder):
                os.makedirs(folder, exist_ok=True)
                inherit_folder_mode(folder)
    return folder


def _check_local(private: str) -> None:
    """Raise UsageError for a folder on a file system that is known to be a network one."""
    import psutil  # noqa: PLC0415 - commands that only read an output do not need it

    path = os.path.realpath(private)
    mounts = [p for p in psutil.disk_partitions(all=True) if os.path.commonpath([p.mountpoint, path]) == p.mountpoint]
    # Of several mounts on one path the last one is visible.
    found = max(reversed(mounts), key=lambda partition: len(partition.mountpoint), default=None)
    if found and found.fstype.lower() in _NETWORK:
        raise UsageError(
            f"{private} is on {found.fstype}, a network file system, where SQLite's locks do not hold: "
            "name a folder on a local disk"
        )
