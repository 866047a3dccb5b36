"""The store of tokens between runs: one token for each server, in a private file or in the system's keyring.

The file is read first. It exists only if somebody chose it, and reading it never makes the keyring ask for a password.
"""

import asyncio
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from harvester.config.options import StoreName
from harvester.errors import UsageError, install_line
from harvester.threads import in_daemon

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend


SERVICE = "harvester"
"""The service name in the keyring, where the server stands as the user name."""
_LONGEST_TOKEN_BYTES = 64 * 1024
_KEYRING = "the system keyring"
_KEYRING_TIMEOUT_SECONDS = 60.0
_SYMLINK_ERRNOS = (errno.ELOOP, errno.ENOTDIR)
"""Error numbers of opening a symbolic link with O_NOFOLLOW: as a file, as a folder."""


class _NoKeyring(UsageError):
    """No keyring that stores anything is available."""


class TokenStore:
    """The stored token of one server. It is never sent to another: a sandbox's token never goes to Bitly.

    base_url: checked. folder: the folder of token files; None for one in the user's data folder.
    """

    def __init__(self, base_url: str, folder: str | None = None) -> None:
        self.server = server_of(base_url)
        import platformdirs  # noqa: PLC0415 - `status` and `verify` do without it

        own = os.path.join(platformdirs.user_data_dir("harvester", appauthor=False), "tokens")
        self._file = _TokenFile(os.path.abspath(folder) if folder else own, self.server, explicit=folder is not None)

    def read(self) -> tuple[str, str] | None:
        """Return the stored token, unchecked, and the name of its store; None if there is none.

        Blocks for up to a minute, because a keyring may ask a person for a password. Not to be called in an event loop.

        Raises:
            UsageError: others can read or write the file, or the keyring failed or timed out.
        """
        text = self._file.read()
        if text is not None:
            return text, self._file.path
        with suppress(_NoKeyring):
            backend = _keyring()
            asked = in_daemon(lambda: backend.get_password(SERVICE, self.server))
            with _explained():
                text = asyncio.run(asyncio.wait_for(asked, _KEYRING_TIMEOUT_SECONDS))
        return None if text is None else (text, _KEYRING)

    def choose(self, store: StoreName | None, tell: Callable[[str], None]) -> StoreName:
        """Return the store to write to: the one requested, else the keyring, else the file.

        tell: called if there is no keyring. Raises UsageError if the store does not work.
        """
        if store != "file":
            try:
                _keyring()
            except _NoKeyring as error:
                if store == "keyring":
                    raise
                tell(f"{error}: the token is stored in a file")
            else:
                return "keyring"
        with self._file.created_folder():
            return "file"

    def keep(self, token: str, store: StoreName) -> str:
        """Store a token in place of an older one, and return the store's name. Raises UsageError if that fails."""
        if store == "file":
            self._file.write(token)
            return self._file.path
        backend = _keyring()
        with _explained():
            backend.set_password(SERVICE, self.server, token)
            stored = backend.get_password(SERVICE, self.server)
        if stored != token:
            raise UsageError("the system keyring does not keep what is stored in it: use harvester login --store file")
        self._file.remove()  # it would take precedence
        return _KEYRING

    def forget(self, tell: Callable[[str], None]) -> bool:
        """Delete the token from both stores, and return True if there was one.

        tell: called for each store that had it. Raises UsageError if a store cannot be changed.
        """
        found = self._file.remove()
        if found:
            tell(f"deleted: {self._file.path}")
        with suppress(_NoKeyring):
            backend = _keyring()
            with _explained():
                if backend.get_password(SERVICE, self.server) is not None:
                    backend.delete_password(SERVICE, self.server)
                    tell(f"deleted: {_KEYRING}")
                    found = True
        return found


def server_of(base_url: str) -> str:
    """Return the server of a base URL: host and port, without the port if it is that of HTTPS."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return host if (parts.scheme, port) == ("https", 443) else f"{host}:{port}"


# --- the keyring --------------------------------------------------------------------------------------------------


def _keyring() -> "KeyringBackend":
    """Return the system's keyring.

    Raises:
        _NoKeyring: there is none, or it stores nothing. UsageError: it cannot be loaded.
    """
    try:
        import keyring  # noqa: PLC0415 - an extra, and slow to import
        from keyring.backends import fail, null  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _NoKeyring(f"no keyring support is installed ({install_line('keyring')})") from error
    with _explained():
        backend = keyring.get_keyring()
    if isinstance(backend, fail.Keyring):
        raise _NoKeyring("no system keyring is running here")
    if isinstance(backend, null.Keyring):
        raise _NoKeyring("the system keyring is switched off (keyring --disable, or PYTHON_KEYRING_BACKEND)")
    return backend


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # backends raise anything, and their texts may contain the token
        raise UsageError(
            f"the system keyring failed ({type(error).__name__}): unlock it, or do without it: harvester "
            "login --store file, BITLY_TOKEN, --token-file or --token-command"
        ) from error


# --- the file -----------------------------------------------------------------------------------------------------


class _TokenFile:
    """A file of mode 0600 with one server's token, in a folder that nobody else can write.

    explicit: the user named the folder, so that failing to open it is an error.
    """

    def __init__(self, folder: str, server: str, *, explicit: bool) -> None:
        self._folder = folder
        self._name = quote(server, safe="") + ".token"  # unique for each server
        self._explicit = explicit
        self.path = os.path.join(folder, self._name)

    def read(self) -> str | None:
        """Return the first line; None without a file. Raises UsageError if others could have read or written it."""
        with self._opened() as folder:
            if folder is None:
                return None
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(self._name, flags, dir_fd=folder)
            except FileNotFoundError:
                return None
            try:
                self._check(os.fstat(descriptor))
                return os.read(descriptor, _LONGEST_TOKEN_BYTES).decode(errors="replace").partition("\n")[0]
            finally:
                os.close(descriptor)

    def write(self, token: str) -> None:
        """Replace the file atomically, in its folder, which is created if it does not exist. Raises UsageError."""
        with self.created_folder() as folder:
            new = f".{self._name}-{secrets.token_hex(4)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(new, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as stream:
                    stream.write(token + "\n")
                # Not synced: after a power cut the user logs in again; no data is lost.
                os.replace(new, self._name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new, dir_fd=folder)
                raise

    def remove(self) -> bool:
        """Delete the file and temporary files of killed processes; return True if it existed. Raises UsageError."""
        with self._opened() as folder:
            if folder is None:
                return False
            names = os.listdir(folder)
            for name in names:
                if name == self._name or name.startswith(f".{self._name}-"):
                    os.unlink(name, dir_fd=folder)
            return self._name in names

    @contextmanager
    def created_folder(self) -> Iterator[int]:
        """Yield a descriptor of the folder, after creating it if it does not exist.

        Raises UsageError if that fails, or if others can write to it.
        """
        if not os.path.isabs(self._folder):
            raise UsageError(f"{self._folder}: there is no home folder; name a folder with --token-store")
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self._folder}: {error.strerror}; name another folder with --token-store") from error
        except RecursionError:
            raise UsageError(f"{self._folder}: too deep; name another folder with --token-store") from None
        with self._opened() as folder:
            if folder is None:  # as dir_fd it would mean the working directory
                raise UsageError(f"{self._folder} cannot be entered: name another folder with --token-store")
            yield folder

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Yield a descriptor of the folder, or None if it does not exist.

        Files are opened relative to it, so that the folder that was checked is the one that is used. An OSError of the
        block becomes a UsageError that names the file.
        """
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or (isinstance(error, PermissionError) and not self._explicit):
                yield None
                return
            why = "not a folder, or a symbolic link to one" if error.errno in _SYMLINK_ERRNOS else error.strerror
            raise UsageError(f"{self._folder}: {why}; name the folder itself with --token-store") from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid not in {os.geteuid(), 0}:
                raise UsageError(f"{self._folder} belongs to another user: name another folder with --token-store")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError(f"{self._folder} can be written by others: chmod 700 {self._folder}")
            yield descriptor
        except OSError as error:
            why = "a symbolic link, which is not followed" if error.errno in _SYMLINK_ERRNOS else error.strerror
            raise UsageError(f"{self.path}: {why}; name another folder with --token-store") from error
        finally:
            os.close(descriptor)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{self.path} is not a file: remove it, and run harvester login")
        if found.st_uid != os.geteuid():
            raise UsageError(f"{self.path} belongs to another user: run harvester logout, then harvester login")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"{self.path} can be read or written by others: chmod 600 {self.path}")
