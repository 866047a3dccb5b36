"""What an open dataset has recorded, through commits that fail."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harvester.dataset.dataset import Batch, Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import read
from harvester.dataset.opening import open_dataset
from harvester.errors import OutputError, UsageError
from harvester.progress import AttemptCounts
from harvester.rows.call import CallState
from harvester.storage.folders import resolve
from tests.support.committing import keep
from tests.support.output_checks import rows
from tests.unit.dataset.test_recovery import FORMS, QUERY, REPORT, dataset, known, settle


def fail(*_: Any, **__: Any) -> None:
    raise OutputError("the disk is full")


@pytest.mark.parametrize("part_rows", [1, 1000], ids=["a journal each", "one journal"])
def test_a_batch_whose_commit_failed_is_committed_before_what_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    with open_dataset(resolve(str(tmp_path / "out")), QUERY, PartLimits(part_rows, 2**20), print) as store:
        settle(store, "old")
        store.commit(store.take_batch())
        settle(store, "a", "no-b")
        store.note_seen(store.rows.key("bit.ly/old"))
        store.note_invalid(b'{"line": 1}')
        store.count("invalid", 1)
        assert store.waiting == 4
        batch = store.take_batch()
        assert store.waiting == 0
        with monkeypatch.context() as patch:
            patch.setattr(store.ledger, "commit", fail)
            with pytest.raises(OutputError, match="the disk is full"):
                store.commit(batch)
        settle(store, "c", "no-d")
        store.note_invalid(b'{"line": 2}')
        store.count("invalid", 2)
        store.give_back(batch)
        assert store.waiting == 7
        whole = store.take_batch()
        store.commit(whole)
        store.give_back(whole)
        assert store.waiting == 0
        assert {*known(store, "old", "a", "no-b", "c", "no-d")} == {"old", "a", "no-b", "c", "no-d"}
        lines = list(store.ledger.failure_lines())
        assert [b"no-b" in lines[0], b"no-d" in lines[1]] == [True, True]
        assert lines[2:] == [b'{"line": 1}', b'{"line": 2}']
        assert store.ledger.facts()["invalid"] == 3
        assert store.totals == store.ledger.totals() == (3, 2, 0, 0, 0, 0)
        store.end_part()
        store.commit(store.take_batch())
        store.publish()
    assert [row["bitlink"] for row in rows(tmp_path / "out")] == ["bit.ly/old", "bit.ly/a", "bit.ly/c"]


def test_only_a_batch_that_was_taken_can_be_committed(tmp_path: Path) -> None:
    with dataset(tmp_path / "out") as store, pytest.raises(ValueError, match="take_batch"):
        store.commit(Batch())


def test_a_call_counts_by_its_last_verdict_and_what_its_row_lacks(tmp_path: Path) -> None:
    with dataset(tmp_path / "out", query=replace(QUERY, units=90)) as store:
        settle(store, "a", "cut", "no-b")
        assert store.totals[:5] == (2, 1, 0, 0, 1)
        key = store.rows.key("bit.ly/c")
        line = store.rows.failure("failed", bitlink="bit.ly/c", file="f", line=1, status=500, message="x")
        store.record(key, CallState.FAILED, line, None)
        assert store.totals[:3] == (2, 1, 1)
        store.record(key, CallState.REFUSED, line, CallState.FAILED)
        assert store.totals[:3] == (2, 2, 0)
        assert store.refreshed == 0


@pytest.mark.parametrize("form", FORMS)
def test_the_manifest_has_what_the_dataset_and_the_run_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    out = tmp_path / form
    with dataset(out) as store:
        settle(store, "a", "cut", "no-b")
        store.count("total", 7)
        store.end_part()
        keep(store)
        written = store.write_manifest(REPORT)
        assert read(str(out)).content == written
        assert (written.dataset.calls, written.dataset.pending, written.attempts.total) == (5, 2, 7)
        assert (written.run_id, written.server) == (store.run_id, "api-ssl.bitly.com")
        (part,) = written.parts
        published = out if out.is_file() else out / part.path
        assert (part.rows, part.bytes, published.name) == (2, published.stat().st_size, part.path)
        monkeypatch.setattr(store.ledger, "facts", fail)
        again = store.renew_manifest(replace(written, updated="2026-11-23T00:00:00Z"))
        assert again.updated >= written.updated
        assert replace(again, updated=written.updated) == written
        assert read(str(out)).content == again


def test_attempts_are_kept_through_a_run_that_commits_nothing(tmp_path: Path) -> None:
    for run in (1, 2):
        with dataset(tmp_path / "out") as store:
            assert AttemptCounts.among(store.ledger.facts()).total == 5 * (run - 1)
            store.record_attempts(AttemptCounts(5))


def backlog(store: Dataset) -> tuple[bool, bool, bool]:
    return store.due, store.behind, store.backlogged


def test_a_dataset_is_behind_while_eight_full_journals_wait(tmp_path: Path) -> None:
    with open_dataset(resolve(str(tmp_path / "out")), QUERY, PartLimits(1, 2**20), print) as store:
        assert backlog(store) == (False, False, False)
        settle(store, *(f"a{number}" for number in range(7)))
        assert backlog(store) == (False, False, False)
        settle(store, "a8")
        assert backlog(store) == (False, False, True)  # that many are not committed
        store.commit(store.take_batch())
        assert backlog(store) == (True, True, True)
        store.publish()
        assert backlog(store) == (False, False, False)


def test_a_part_too_large_for_an_object_store_is_refused_with_the_most(tmp_path: Path) -> None:
    location = resolve("s3://bucket/lake", str(tmp_path / "work"))
    too_large = pytest.raises(UsageError, match="an object store gets at most 512MiB in one request")
    with too_large, open_dataset(location, QUERY, PartLimits(1, 2**29 + 1), print):
        pass
