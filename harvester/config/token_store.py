"""Where a token is kept between runs: a file of the user's own or the system's keyring, for each server apart.

The file goes first: it is there only if somebody wanted it, and a run that finds it never wakes the keyring.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from harvester.errors import UsageError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend


SERVICE = "harvester"
"""What the keyring calls us; the server is the user's name there."""
_LONGEST = 64 * 1024
_KEYRING = "the system keyring"
_PATIENCE_SECONDS = 60.0
_IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR)
"""What opening a symbolic link as a file or as a folder is answered."""


class TokenStoreName(StrEnum):
    """Where a token can be kept."""

    KEYRING = "keyring"
    FILE = "file"


class _NoKeyring(UsageError):
    """There is no keyring here that keeps anything."""


class TokenStore:
    """The kept token of one server, and of no other: a sandbox's never goes to Bitly.

    base_url: a checked one. folder: where files are kept; None for one in the user's data folder.
    """

    def __init__(self, base_url: str, folder: str | None = None) -> None:
        self.server = server_of(base_url)
        import platformdirs  # noqa: PLC0415 - a look at a manifest needs none of it

        own = os.path.join(platformdirs.user_data_dir("harvester", appauthor=False), "tokens")
        self._file = _TokenFile(os.path.abspath(folder) if folder else own, self.server, asked=folder is not None)

    def read(self) -> tuple[str, str] | None:
        """Give what is kept, unchecked, and where; None where nothing is. May block for a minute: keyrings ask people.

        Raises:
            UsageError: the file is not the user's alone, or the keyring failed, or nobody answered it.
        """
        text = self._file.read()
        if text is not None:
            return text, self._file.path
        with suppress(_NoKeyring):
            backend = _keyring()
            with _explained():
                text = _in_time(lambda: backend.get_password(SERVICE, self.server))
        return None if text is None else (text, _KEYRING)

    def choose(self, store: TokenStoreName | None, tell: Callable[[str], None]) -> TokenStoreName:
        """Give the store to keep a token in, made ready: the one asked for, else the keyring, else the file.

        Raises:
            UsageError: it cannot be used.
        """
        if store is not TokenStoreName.FILE:
            try:
                _keyring()
            except _NoKeyring as error:
                if store is TokenStoreName.KEYRING:
                    raise
                tell(f"{error}: the token goes into a file")
            else:
                return TokenStoreName.KEYRING
        self._file.make_room()
        return TokenStoreName.FILE

    def keep(self, token: str, store: TokenStoreName) -> str:
        """Keep a token, instead of an older one, and say where.

        Raises:
            UsageError: it cannot be kept there.
        """
        if store is TokenStoreName.FILE:
            self._file.write(token)
            return self._file.path
        backend = _keyring()
        with _explained():
            backend.set_password(SERVICE, self.server, token)
            kept = backend.get_password(SERVICE, self.server)
        if kept != token:
            raise UsageError("the system keyring does not keep what it is given: harvester login --store file")
        self._file.remove()  # it would go first
        return _KEYRING

    def forget(self, tell: Callable[[str], None]) -> bool:
        """Forget the token wherever it is kept, and tell each place; say whether there was one.

        Raises:
            UsageError: the file or the keyring does not give it up.
        """
        found = self._file.remove()
        if found:
            tell(f"forgotten: {self._file.path}")
        with suppress(_NoKeyring):
            backend = _keyring()
            with _explained():
                if backend.get_password(SERVICE, self.server) is not None:
                    backend.delete_password(SERVICE, self.server)
                    tell(f"forgotten: {_KEYRING}")
                    found = True
        return found


def server_of(base_url: str) -> str:
    """Name the server of a base URL: host and port, without HTTPS's own port."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return host if (parts.scheme, port) == ("https", 443) else f"{host}:{port}"


# --- the keyring --------------------------------------------------------------------------------------------------


def _keyring() -> "KeyringBackend":
    """Give the system's keyring.

    Raises:
        _NoKeyring: there is none that keeps anything. UsageError: it cannot be loaded.
    """
    try:
        import keyring  # noqa: PLC0415 - an extra, and slow to import
        from keyring.backends import fail, null  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _NoKeyring("the system keyring needs an extra (pip install 'bitly-harvester[keyring]')") from error
    with _explained():
        backend = keyring.get_keyring()
    if isinstance(backend, fail.Keyring):
        raise _NoKeyring("no system keyring is running here")
    if isinstance(backend, null.Keyring):
        raise _NoKeyring("the system keyring is switched off (keyring --disable, or PYTHON_KEYRING_BACKEND)")
    return backend


def _in_time(ask: Callable[[], str | None]) -> str | None:
    """Give what a keyring answers; it may be showing a password prompt, which at night nobody sees.

    Raises what it raises, and TimeoutError.
    """
    answers: SimpleQueue[str | Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(ask())
        except Exception as error:  # handed to whoever waits
            answers.put(error)

    Thread(target=work, name="harvester-keyring", daemon=True).start()
    try:
        answer = answers.get(timeout=_PATIENCE_SECONDS)
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # backends raise what they like, and their texts may hold the token
        raise UsageError(
            f"the system keyring failed ({type(error).__name__}): unlock it, or do without: harvester login "
            "--store file, BITLY_TOKEN, --token-file or --token-command"
        ) from error


# --- the file -----------------------------------------------------------------------------------------------------


class _TokenFile:
    """A file of mode 0600 for one server, in a folder that nobody else can write.

    asked: the folder was named by the user, so that one that cannot be entered is an error.
    """

    def __init__(self, folder: str, server: str, *, asked: bool) -> None:
        self._folder = folder
        self._name = quote(server, safe="") + ".token"  # no two servers have the same
        self._asked = asked
        self.path = os.path.join(folder, self._name)

    def read(self) -> str | None:
        """Give what is in it; None where there is none. Raises UsageError when others could have read or made it."""
        with self._entered() as folder, self._saying_where():
            if folder is None:
                return None
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(self._name, flags, dir_fd=folder)
            except FileNotFoundError:
                return None
            try:
                self._check(os.fstat(descriptor))
                return os.read(descriptor, _LONGEST).decode(errors="replace").partition("\n")[0]
            finally:
                os.close(descriptor)

    def make_room(self) -> None:
        """Make the folder, if it is not there. Raises UsageError where that cannot be, or others can write it."""
        if not os.path.isabs(self._folder):
            raise UsageError(f"{self._folder}: there is no home folder; name a folder by --token-store")
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self._folder}: {error.strerror}; name another folder by --token-store") from error
        with self._entered() as folder:
            if folder is None:
                raise UsageError(f"{self._folder} cannot be entered: name another folder by --token-store")

    def write(self, token: str) -> None:
        """Put a token in place of what was there, whole or not at all."""
        self.make_room()
        with self._entered() as folder, self._saying_where():
            if folder is None:  # None would mean the working directory below
                raise UsageError(f"{self._folder} was taken away: run harvester login again")
            new = f".{self._name}-{secrets.token_hex(4)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(new, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as stream:
                    stream.write(token + "\n")
                # Not synced: a power cut that comes now costs another login, and no data.
                os.replace(new, self._name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new, dir_fd=folder)
                raise

    def remove(self) -> bool:
        """Remove it, and what a killed process has left of one; say whether it was there."""
        with self._entered() as folder, self._saying_where():
            if folder is None:
                return False
            names = os.listdir(folder)
            for name in names:
                if name == self._name or name.startswith(f".{self._name}-"):
                    os.unlink(name, dir_fd=folder)
            return self._name in names

    @contextmanager
    def _entered(self) -> Iterator[int | None]:
        """Open the folder, so that what is checked is what is used; None where it is not there."""
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or (isinstance(error, PermissionError) and not self._asked):
                yield None
                return
            why = "not a folder, or a symbolic link to one" if error.errno in _IN_THE_WAY else error.strerror
            raise UsageError(f"{self._folder}: {why}; name the folder itself by --token-store") from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid not in {os.geteuid(), 0}:
                raise UsageError(f"{self._folder} belongs to another user: name another folder by --token-store")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError(f"{self._folder} can be written by others: chmod 700 {self._folder}")
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{self.path} is not a file: remove it, and run harvester login")
        if found.st_uid != os.geteuid():
            raise UsageError(f"{self.path} belongs to another user: run harvester logout, then harvester login")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"{self.path} can be read or written by others: chmod 600 {self.path}")

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "a symbolic link, which is not followed" if error.errno in _IN_THE_WAY else error.strerror
            raise UsageError(f"{self.path}: {why}; name another folder by --token-store") from error
