"""File modes: what users share they must both be able to write."""

import os
import stat
from contextlib import suppress


def like_folder(path: str) -> None:
    """Give a new file or folder the permissions of the folder that it lies in: private there, shared where that is."""
    mode = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
    with suppress(PermissionError):  # somebody else's, who made it a moment before
        os.chmod(path, mode if os.path.isdir(path) else mode & 0o666)
