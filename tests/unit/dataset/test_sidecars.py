"""The files beside the rows, and those whose upload failed."""

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from harvester.dataset.sidecars import Sidecars
from harvester.errors import OutputError, StoreRefused
from harvester.storage.location import FAILURES, MANIFEST, SUCCESS
from harvester.storage.storage import LocalStorage


class Store(LocalStorage):
    """An object store that can be away. asked: the names that were uploaded or tried, and the patience of each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(str(folder))
        self.away: OutputError | None = None
        self.asked: list[tuple[str, bool]] = []

    def replace(self, name: str, chunks: Iterable[bytes], *, patient: bool = True) -> None:
        self.asked.append((name, patient))
        if self.away:
            raise self.away
        super().replace(name, chunks)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "local").mkdir()
    return Store(tmp_path / "store")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def sidecars(tmp_path: Path, store: Store, warnings: list[str]) -> Sidecars:
    return Sidecars(str(tmp_path / "local"), store, warnings.append)


def test_each_file_is_written_and_uploaded(sidecars: Sidecars, store: Store, tmp_path: Path) -> None:
    sidecars.write_failures([b"a", b"b"])
    sidecars.write_manifest({"n": 1}, last=True)
    sidecars.write_success()
    for folder in ("local", "store"):
        assert (tmp_path / folder / FAILURES).read_bytes() == b"a\nb\n"
        assert json.loads((tmp_path / folder / MANIFEST).read_bytes()) == {"n": 1, "runs": [], "history": []}
        assert (tmp_path / folder / SUCCESS).read_bytes() == b""
    assert store.asked == [(FAILURES, False), (MANIFEST, True)]
    sidecars.delete_success()
    sidecars.delete_success()
    assert not (tmp_path / "local" / SUCCESS).exists()
    assert not (tmp_path / "store" / SUCCESS).exists()


def test_a_store_that_is_away_costs_one_warning_and_gets_all_of_it_later(
    sidecars: Sidecars, store: Store, warnings: list[str], tmp_path: Path
) -> None:
    store.away = OutputError("away")
    sidecars.write_manifest({"n": 1}, last=False)
    sidecars.write_failures([b"a"])
    sidecars.write_manifest({"n": 2}, last=False)
    assert warnings == ["away; the run continues, and tries again later"]
    store.away = None
    store.asked.clear()
    sidecars.write_manifest({"n": 3}, last=False)
    assert store.asked == [(FAILURES, False), (MANIFEST, False)]  # the manifest last, as it speaks of the others
    assert json.loads((tmp_path / "store" / MANIFEST).read_bytes()) == {"n": 3, "runs": [], "history": []}
    sidecars.write_manifest({"n": 4}, last=False)
    assert [name for name, _ in store.asked] == [FAILURES, MANIFEST, MANIFEST]
    store.away = OutputError("away again")
    sidecars.write_manifest({"n": 5}, last=False)
    assert len(warnings) == 2


@pytest.mark.parametrize(("error", "last"), [(OutputError("away"), True), (StoreRefused("no"), False)])
def test_at_the_runs_end_and_where_it_is_hopeless_a_failed_upload_is_an_error(
    sidecars: Sidecars, store: Store, warnings: list[str], error: OutputError, last: bool
) -> None:
    store.away = error
    with pytest.raises(type(error)):
        sidecars.write_manifest({}, last=last)
    assert warnings == []


def test_a_folder_that_is_gone_is_named(sidecars: Sidecars, tmp_path: Path) -> None:
    (tmp_path / "local").rmdir()
    with pytest.raises(OutputError, match=f"{tmp_path}/local"):
        sidecars.write_failures([])


def test_a_full_disk_is_told_with_the_folder(
    sidecars: Sidecars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a failed write does, without a name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=f"^{tmp_path}/local.*: No space left"):
        sidecars.write_failures([])


def test_rows_on_standard_output_have_no_such_files(warnings: list[str]) -> None:
    nothing = Sidecars(None, None, warnings.append)
    nothing.write_manifest({}, last=True)
    nothing.write_success()
    nothing.delete_success()
