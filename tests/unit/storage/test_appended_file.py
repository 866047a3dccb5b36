"""A file that only ever grows: what another program does to it is noticed before anything is appended to it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester.errors import OutputError
from harvester.storage import appended_file
from harvester.storage.appended_file import AppendedFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


@pytest.fixture
def file(path: Path) -> Iterator[AppendedFile]:
    file = AppendedFile(str(path), str(path.with_name("saved")))
    assert file.open() == 0
    yield file
    file.close()


def replace(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").rename(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"X")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.rename(path.with_name("moved")), "was moved away, to"),
        (Path.unlink, "was removed while it was being written. Its 6 bytes are saved"),
        (replace, "was removed while it was being written. Its 6 bytes are saved"),
        (lambda path: os.truncate(path, 0), "has 0 bytes, expected 6: it was truncated"),
        (lambda path: os.truncate(path, 60), "has 60 bytes, expected 6: another program has written to it"),
        (overwrite, "was overwritten by another program"),
        (lambda path: path.parent.rename(path.parent.with_name("renamed")), "name its new path as --out"),
    ],
    ids=["moved", "removed", "replaced", "cut", "extended", "overwritten", "folder renamed"],
)
def test_nothing_is_appended_to_a_changed_file(
    path: Path, file: AppendedFile, change: Callable[[Path], object], says: str
) -> None:
    file.append(b"one\n")
    file.append(b"2\n")
    change(path)
    for attempt in (lambda: file.append(b"3\n"), file.check, file.open):
        with pytest.raises(OutputError, match=says.replace(".", r"\.")):
            attempt()
    assert str(file.changed).startswith(str(path))


def test_a_removed_file_is_saved(path: Path, file: AppendedFile) -> None:
    file.append(b"one\n")
    path.unlink()
    with pytest.raises(OutputError):
        file.check()
    assert path.with_name("saved").read_bytes() == b"one\n"
    assert not path.exists()


def test_a_file_without_content_is_made_again(path: Path, file: AppendedFile) -> None:
    file.check()
    path.unlink()
    file.check()
    assert path.exists()
    path.write_bytes(b"not ours")
    with pytest.raises(OutputError, match="another program has written to it"):
        file.append(b"one\n")


def test_a_touched_file_goes_on(path: Path, file: AppendedFile) -> None:
    file.append(b"one\n")
    os.utime(path, (1, 1))
    file.append(b"2\n")
    assert path.read_bytes() == b"one\n2\n"


class Racing:
    """Stands before the os module: another program comes between the check and the write."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: bytes) -> int:
        self._then()
        return os.write(descriptor, data)


@pytest.mark.parametrize("size", [0, 100])
def test_a_change_between_check_and_write_is_noticed(
    path: Path, file: AppendedFile, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file.append(b"one\n")
    monkeypatch.setattr(appended_file, "os", Racing(lambda: os.truncate(path, size)))
    with pytest.raises(OutputError, match=r"it was truncated|another program has written"):
        file.append(b"2\n")


def test_the_line_before_a_position_is_found(file: AppendedFile) -> None:
    assert file.line_before(0) == b""
    long = b"x" * 10_000 + b"\n"
    file.append(b"one\n" + long + b"3\n")
    assert file.line_before(4) == b"one\n"
    assert file.line_before(4 + len(long)) == long
    assert file.line_before(6 + len(long)) == b"3\n"
