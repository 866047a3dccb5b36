"""What the chaos runner does to files between two runs, and what it reads of them itself."""

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harvester.dataset import journal


@dataclass(frozen=True)
class Place:
    """An output's files: the output, the folder of its `_` files, that of its private state, and the budget's.

    work_dir: where the private state is, if that was chosen. facet: the output's. day: its period, empty for none.
    """

    out: Path
    public: Path
    private: Path
    state: Path
    work_dir: str | None = None
    facet: str = "referrers"
    day: str = ""

    @property
    def published(self) -> list[Path]:
        """The parts, or the growing file."""
        return sorted(self.out.glob("part-*")) if self.out.suffix == "" else [self.out] * self.out.exists()

    @property
    def journals(self) -> list[Path]:
        return sorted(self.private.glob("journal-*.journal"))

    @property
    def ledger(self) -> Path:
        return self.private / "ledger.sqlite"


@dataclass(frozen=True)
class Known:
    """What the ledger knows: how many calls are settled by a row, and the committed length of each journal."""

    rows: int = 0
    committed: dict[int, int] | None = None


def known_to(ledger: Path) -> Known:
    """Read a copy of a ledger, since reading changes it; nothing, if it is damaged."""
    if not ledger.exists() or not ledger.stat().st_size:
        return Known()
    with tempfile.TemporaryDirectory(dir=ledger.parents[1]) as folder:
        for file in ledger.parent.glob(ledger.name + "*"):
            shutil.copy(file, folder)
        database = sqlite3.connect(Path(folder) / ledger.name)
        try:
            (rows,) = database.execute("SELECT count(*) FROM calls WHERE state = 0").fetchone()
            return Known(rows, dict(database.execute("SELECT segment, committed FROM journals")))
        except sqlite3.Error:
            return Known()
        finally:
            database.close()


def rows_in(path: Path, start: int = 0) -> int:
    """Count the rows of a journal behind a position."""
    return sum(record.state == 0 for record in journal.read(str(path), start))


@dataclass(frozen=True)
class Damage:
    """What was done. answers: those that it has destroyed, at most; silent: of these, those that nobody can notice.

    public: the consumer's own files were damaged, which no run has to mend.
    """

    what: str
    answers: int = 0
    silent: int = 0
    public: bool = False


Harm = Callable[[Place, random.Random], Damage | None]


def _garble(path: Path, rng: random.Random, length: int = 1) -> None:
    content = bytearray(path.read_bytes())
    at = int(rng.random() * len(content))
    for position in range(at, min(at + length, len(content))):
        content[position] ^= 1 + int(rng.random() * 255)
    path.write_bytes(bytes(content))


def _of_journals(place: Place, rng: random.Random, harm: Callable[[Path], None], what: str) -> Damage | None:
    """Harm a journal. Its rows may be gone, and all that came behind the ledger's last commit without a word."""
    chosen = rng.random()
    if not place.journals:
        return None
    path = place.journals[int(chosen * len(place.journals))]
    segment = int(path.name[8:-8])
    start = (known_to(place.ledger).committed or {}).get(segment, 0)
    answers = rows_in(path)
    silent = rows_in(path, start) if start <= path.stat().st_size else answers
    harm(path)
    return Damage(f"{what} {path.name}", answers, silent)


def _flip_in_journal(place: Place, rng: random.Random) -> Damage | None:
    return _of_journals(place, rng, lambda path: _garble(path, rng), "a bad byte in")


def _cut_journal(place: Place, rng: random.Random) -> Damage | None:
    share = rng.random()
    return _of_journals(place, rng, lambda path: os.truncate(path, int(path.stat().st_size * share)), "cut")


def _remove_journal(place: Place, rng: random.Random) -> Damage | None:
    return _of_journals(place, rng, Path.unlink, "removed")


def _of_ledger(place: Place, harm: Callable[[Path], None], what: str) -> Damage | None:
    """Harm the ledger. Rows and journals still show what it knew, and repair says what they do not."""
    if not place.ledger.exists():
        return None
    harm(place.ledger)
    return Damage(what, 10**6)


def _remove_ledger(place: Place, rng: random.Random) -> Damage | None:
    def remove(path: Path) -> None:
        for file in path.parent.glob(path.name + "*"):
            file.unlink()

    return _of_ledger(place, remove, "ledger removed")


def _garble_ledger(place: Place, rng: random.Random) -> Damage | None:
    return _of_ledger(place, lambda path: _garble(path, rng, 200), "ledger garbled")


def _remove_log_of_ledger(place: Place, rng: random.Random) -> Damage | None:
    log = place.ledger.with_name("ledger.sqlite-wal")
    return _of_ledger(place, lambda _: log.unlink(), "the ledger's log removed") if log.exists() else None


def _of_file(name: str, *, garbled: bool) -> Harm:
    def harm(place: Place, rng: random.Random) -> Damage | None:
        path = (place.private if name == "attempts" else place.public) / name
        if not path.exists() or not path.stat().st_size:
            return None
        if garbled:
            _garble(path, rng, 20)
        else:
            path.unlink()
        return Damage(f"{name} {'garbled' if garbled else 'removed'}")

    return harm


def _remove_locks(place: Place, rng: random.Random) -> Damage | None:
    shutil.rmtree(place.state / "connections", ignore_errors=True)
    return Damage("locks removed")


def _budget(place: Place, rng: random.Random) -> Damage | None:
    budget = place.state / "budget.sqlite"
    if not budget.exists():
        return None
    if rng.random() < 0.5:
        for file in place.state.glob("budget.sqlite*"):
            file.unlink()
        return Damage("budget removed")
    _garble(budget, rng, 200)
    return Damage("budget garbled")


def _published(place: Place, rng: random.Random) -> Damage | None:
    chosen = rng.random()
    if not place.published:
        return None
    path = place.published[int(chosen * len(place.published))]
    if not path.stat().st_size:
        return None
    if rng.random() < 0.5:
        _garble(path, rng)
        return Damage(f"a bad byte in {path.name}", public=True)
    if place.out.suffix:
        os.truncate(path, int(path.stat().st_size * rng.random()))
        return Damage(f"cut {path.name}", 10**6, public=True)
    path.unlink()
    return Damage(f"removed {path.name}", public=True)


HARMS: tuple[Harm, ...] = (
    _flip_in_journal, _flip_in_journal, _cut_journal, _remove_journal, _remove_ledger, _garble_ledger,
    _remove_log_of_ledger, _of_file("attempts", garbled=False), _of_file("attempts", garbled=True),
    _of_file("_manifest.json", garbled=False), _of_file("_manifest.json", garbled=True),
    _of_file("_failures.ndjson", garbled=False), _of_file("_failures.ndjson", garbled=True),
    _of_file("_SUCCESS", garbled=False), _remove_locks, _budget, _published,
)  # fmt: skip
