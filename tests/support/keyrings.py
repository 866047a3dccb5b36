"""Keyrings for commands under test, chosen by PYTHON_KEYRING_BACKEND; what they hold lies in the file TEST_KEYRING."""

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError

FILE = "TEST_KEYRING"


def held() -> dict[str, str]:
    path = Path(os.environ[FILE])
    return dict(json.loads(path.read_text())) if path.exists() else {}


def asked(what: str) -> None:
    """Write down that a keyring was asked at all."""
    with open(os.environ[FILE] + ".asked", "a") as log:
        log.write(f"{what}\n")


class Working(KeyringBackend):
    """Keeps what it is given."""

    priority = 1

    def get_password(self, service: str, username: str) -> str | None:
        asked("get")
        return held().get(f"{service} {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        asked("set")
        Path(os.environ[FILE]).write_text(json.dumps({**held(), f"{service} {username}": password}))

    def delete_password(self, service: str, username: str) -> None:
        found = held()
        if found.pop(f"{service} {username}", None) is None:
            raise PasswordDeleteError
        Path(os.environ[FILE]).write_text(json.dumps(found))


class Locked(Working):
    """Is locked, and says too much about it."""

    def get_password(self, service: str, username: str) -> str | None:
        raise KeyringLocked(f"locked for {service} {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise KeyringLocked(f"locked: {password} was not kept")


class Forgetful(Working):
    """Takes everything and keeps nothing."""

    def set_password(self, service: str, username: str, password: str) -> None:
        asked("set")
