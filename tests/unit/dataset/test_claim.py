"""Which ledger may publish under an object store's prefix: no lock reaches a second machine."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from harvester.dataset.ledger import Ledger
from harvester.dataset.part_publisher import check_unclaimed, claim_prefix, listed_parts
from harvester.errors import OutputError
from harvester.rows.call import CallState, Entry
from harvester.storage.location import CLAIM, MANIFEST, OutputKind, OutputLocation
from harvester.storage.storage import LocalStorage

LOCATION = OutputLocation(OutputKind.STORE, "s3://bucket/lake", "/work/public", "/work/lake")


class Replacing(LocalStorage):
    """A store that ignores the condition that a name be free."""

    def create(self, name: str, data: bytes) -> bool:
        self.replace(name, [data])
        return True


class Raced(LocalStorage):
    """A store in which another machine's claim arrives between the look and the request."""

    def create(self, name: str, data: bytes) -> bool:
        LocalStorage.create(self, name, b'{"claim": "another", "host": "b"}')
        return False


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(str(tmp_path / "ledger.sqlite"))) as opened:
        opened.create({"run_id": "r1"})
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    (tmp_path / "store").mkdir()
    return LocalStorage(str(tmp_path / "store"))


def test_a_new_prefix_is_claimed_with_a_secret_of_the_ledger_and_stays_its(store: LocalStorage, ledger: Ledger) -> None:
    check_unclaimed(store, LOCATION)
    claim_prefix(store, LOCATION, ledger)
    claim = json.loads(store.get(CLAIM) or b"")
    assert claim["claim"] == ledger.facts()["claim"]
    assert len(claim["claim"]) == 32
    assert (claim["run_id"], claim["host"], claim["work_dir"]) == ("r1", os.uname().nodename, LOCATION.work_dir)
    assert claim["tool"].startswith("harvester ")
    assert claim["made"].endswith("Z")
    claim_prefix(store, LOCATION, ledger)
    assert json.loads(store.get(CLAIM) or b"") == claim


def test_a_prefix_of_another_ledger_is_refused_with_its_owner(store: LocalStorage, ledger: Ledger) -> None:
    store.create(CLAIM, b'{"claim": "another", "host": "b", "run_id": "r2"}')
    for use in (partial(check_unclaimed, store, LOCATION), partial(claim_prefix, store, LOCATION, ledger)):
        with pytest.raises(
            OutputError, match=r"belongs to another work dir \(host b work_dir unknown run_id r2 made unk"
        ):
            use()


def test_of_two_machines_one_wins_a_prefix(store: LocalStorage, ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"belongs to another work dir \(host b "):
        claim_prefix(Raced(str(tmp_path / "store")), LOCATION, ledger)


def test_a_store_that_replaces_what_it_was_asked_to_create_is_refused(
    store: LocalStorage, ledger: Ledger, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="this store replaces an object"):
        claim_prefix(Replacing(str(tmp_path / "store")), LOCATION, ledger)


def test_a_prefix_that_was_begun_with_a_work_dir_that_is_lost_is_refused_to_a_new_one(
    store: LocalStorage, ledger: Ledger
) -> None:
    store.create(MANIFEST, b"{}")
    for use in (partial(check_unclaimed, store, LOCATION), partial(claim_prefix, store, LOCATION, ledger)):
        with pytest.raises(OutputError, match="was started with another --work-dir than /work/lake"):
            use()
    assert store.get(CLAIM) is None
    # A ledger that is not new goes on once somebody has deleted the claim.
    ledger.commit(entries=[(0, [Entry(bytes(16), CallState.ROW, None)])], invocation=1)
    claim_prefix(store, LOCATION, ledger)
    assert store.get(CLAIM) is not None


@pytest.mark.parametrize(
    ("manifest", "names"),
    [
        (None, set()),
        (b"{", set()),
        (b'{"parts": {"path": "a"}}', set()),
        (b'{"parts": [{"path": "a"}, {"rows": 1}, "b", {"path": "c"}]}', {"a", "c"}),
    ],
)
def test_parts_are_listed_by_a_manifest_as_far_as_it_can_be_read(manifest: bytes | None, names: set[str]) -> None:
    assert listed_parts(manifest) == names
