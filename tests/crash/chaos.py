"""Random runs under random faults, decided by a seed: nothing is lost, doubled or bought twice, and all ends are clear.

    python -m tests.crash.chaos --seed 1234              one scenario, with its log
    python -m tests.crash.chaos --runs 10000 --jobs 2    many, and a table of what they came to

A scenario is a list, a form of output, and a few runs, each with a fault of its own, a mood of the server, and at times
an edited list or a damaged file before it. The last run is undisturbed. A seed decides all that is drawn; when a signal
meets which line of the program, the machine decides.
"""

import argparse
import contextlib
import errno
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harvester.rows.encode import Format, PartFormat
from harvester.rows.schema import Shape
from harvester.sandbox import metrics_for
from harvester.signals import ENDING
from tests.crash.chaos_damage import HARMS, Damage, Place, known_to
from tests.crash.chaos_runs import Ended, Fault, Runs
from tests.crash.chaos_server import FAULTS, Mood, ServerProcess
from tests.support import killed_forks
from tests.support.commands import STATE_DIR, TOKEN, TOKEN_STORE
from tests.support.output_checks import content
from tests.support.power_cut import Disk, Loss

ERRORS = {
    "open": (errno.EMFILE, errno.EACCES, errno.ENOSPC),
    "write": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EACCES,),
    "mkdir": (errno.ENOSPC,),
    "truncate": (errno.EIO,),
}
KINDS = ("journal", "journal", "part", "growing", "manifest", "failures", "folder", "success", "ledger", "budget")
_DAY = 86400.0
_SHOWN_EVERY = 200
"""Scenarios between two lines of progress."""
JUMPS = (-3600.0, 3600.0, -40 * _DAY, 40 * _DAY, -7000 * _DAY, 3650 * _DAY, 90.0, -90.0)
INVALID = ("not a link", "https://example.com/", "bit.ly/", "\x00", "bit.ly/../../user", "é" * 50)
DECORATED = ("{}", "{}", "{}", "https://{}", "HTTP://{}/", '"{}"', "{}?utm=1", " {} ", "{}\r")
# What an end says to do. Each message of harvester's that has none of these is reported as unclear.
ADVICE = re.compile(
    r"harvester (repair|verify|status|run)|run (it|the same command) again|same (run )?command|repeat it|restore|"
    r"remove|free|make room|use another|move it|add --|--[a-z]|needs? |carr(y|ies) on|resume|try again|"
    # Of a file that is named, what the system says is enough.
    r"/\S+.*[ (:](no space left|input/output error|permission denied|too many open files)|"
    # And verify names each file and line that is damaged.
    r"/\S+:\d+: not JSON|FAILED: \d+ problem",
    re.IGNORECASE,
)
CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, *(128 + number for number in ENDING)}
PYTHONS_OWN = re.compile(r"Traceback|Exception ignored|never awaited|never retrieved|\w+Warning: ")
FACETS = ("referrers", "countries", "cities", "devices", "referring_domains")
DAYS = ("2026-01-05", "2026-01-06")


@dataclass
class Tally:
    """What scenarios have come to."""

    scenarios: int = 0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    rows_checked: int = 0
    lost: int = 0
    doubled: int = 0
    beyond: int = 0
    unclear: int = 0
    wrong: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def table(self) -> str:
        lines: list[tuple[str, object]] = [("scenarios", self.scenarios), ("runs of harvester", self.runs)]
        lines += [(f"  {name}", count) for name, count in sorted(self.faults.items())]
        lines += [("ends by exit code", "")]
        lines += [(f"  {name}", count) for name, count in sorted(self.ends.items())]
        lines += [("rows checked", self.rows_checked), ("rows lost", self.lost), ("rows doubled", self.doubled)]
        lines += [("calls repeated beyond the promise", self.beyond), ("unclear ends", self.unclear)]
        lines += [("other findings", self.wrong)]
        return "\n".join(f"{name:<40} {count!s:>12}" for name, count in lines)


class Scenario:
    """One seed's scenario. folder: its own, empty. said: its log."""

    def __init__(self, seed: int, folder: Path, server: ServerProcess) -> None:
        self.seed, self.said, self.tally = seed, [f"seed {seed}"], Tally(scenarios=1)
        self._rng = random.Random(f"chaos {seed}")
        self._server = server
        self._list = folder / "links.txt"
        self._disk = folder / "disk"
        self._disk.mkdir()
        self._runs = Runs(folder)
        self._number = 0
        self._links = self._new_links(self._rng.randint(20, 120))
        self._ever = set(self._links)
        self._places, self._given = self._form()
        self._jumped = False
        self._connections: int = self._given["connections"]
        self._damage: list[Damage] = []
        self._allowed = 0
        self._notices = ""
        self._torn = False  # the power was cut, so what a growing file's end holds is cut off by the next run

    def _form(self) -> tuple[list[Place], dict[str, Any]]:
        """Draw the form of the outputs, and the options of all runs."""
        rng = self._rng
        name = rng.choice(("out", "out", "results.ndjson"))
        facets = tuple(rng.sample(FACETS, 2)) if rng.random() < 0.15 else (rng.choice((FACETS[0], *FACETS)),)
        days = DAYS[: rng.randint(1, 2)] if rng.random() < 0.15 else ()
        folder = self._disk / ("{facet}" if len(facets) > 1 else "") / ("{dt}" if len(days) > 1 else "")
        out, work = folder / name, None
        if rng.random() < 0.15:
            work = str(self._disk / "work" / folder.relative_to(self._disk))
        host = "localhost" if rng.random() < 0.2 else "127.0.0.1"
        formats = (None, "ndjson", "ndjson.gz", "ndjson.gz", "parquet")
        given: dict[str, Any] = {
            "out": str(out),
            "work_dir": work,
            "state_dir": str(self._disk / "state"),
            "base_url": f"http://{host}:{self._server.port}/v4",
            "per_minute": 0,
            "per_hour": 0,
            "per_month": 0,
            "connections": rng.choice((1, 2, 5, 5)),
            "timeout": "2s",
            "outage_limit": "1s",
            "part_rows": rng.choice((3, 10, 25, 1_000_000)),
            "format": rng.choice(formats) if name == "out" else None,
            "shape": rng.choice((None, None, "flat")) if name == "out" else None,
            "size": rng.choice((50, 50, 4)),
            "complete": rng.random() < 0.3,
            "transport": rng.choice(("auto", "auto", "session")),
            "facet": facets,
            "carry": "campaign" if rng.random() < 0.2 else None,
            "group": "Ba1bc23dE4F" if rng.random() < 0.12 else None,
            "since": days[0] if days else None,
            "until": days[-1] if days else None,
            "refresh": "30d" if not days and rng.random() < 0.15 else None,
        }
        if given["group"]:
            given["carry"] = None
        if given["carry"]:
            given["list_format"] = "csv"
        self.said.append(" ".join(f"{name}={value}" for name, value in given.items() if value is not None))
        return [self._place(out, work, facet, day) for facet in facets for day in days or ("",)], given

    def _place(self, out: Path, work: str | None, facet: str, day: str) -> Place:
        """Return the files of one facet and period. out, work: with the placeholders of the options."""
        filled = Path(str(out).format(facet=facet, dt=day))
        work = work and work.format(facet=facet, dt=day)
        public = filled if filled.suffix == "" else filled.with_name(filled.name + ".harvester")
        private = Path(work) if work else (filled / "_harvester" if filled.suffix == "" else public)
        return Place(filled, public, private, self._disk / "state", work, facet, day)

    def _new_links(self, count: int) -> list[str]:
        refused = self._rng.choice((0.0, 0.0, 0.1, 0.3))
        links = []
        for _ in range(count):
            self._number += 1
            kind = self._rng.choice(("missing-", "gone-")) if self._rng.random() < refused else ""
            links.append(f"bit.ly/{kind}{self.seed % 1000}x{self._number}")
        return links

    # --- a scenario -----------------------------------------------------------------------------------------------

    def play(self) -> Tally:
        rng, disturbed = self._rng, self._rng.choice((1, 2, 2, 3, 3, 4, 5))
        self._server.tell(Mood(), group=self._links)
        self._write_list()
        for number in range(disturbed):
            if number and rng.random() < 0.35 and not self._given["group"]:  # whose links are listed once
                self._edit_list()
            if number and rng.random() < 0.15:
                self._harm()
            self._disturbed()
        self._end()
        for name, count in self._server.tell()["faults"].items():
            self.tally.faults[f"server: {name}"] += count
        return self.tally

    def _write_list(self) -> None:
        rng, lines = self._rng, []
        if self._given["carry"]:
            self._write_table()
            return
        for link in self._links:
            lines.append(rng.choice(DECORATED).format(link))
            if rng.random() < 0.08:
                lines.append(link)
            if rng.random() < 0.04:
                lines.append(rng.choice(INVALID))
        if rng.random() < 0.5:
            rng.shuffle(lines)
        self._list.write_text("".join(f"{line}\n" for line in lines))

    def _write_table(self) -> None:
        """Write the list with a column to carry; a link's first line counts."""
        lines = [f"{link},{campaign_of(link)}" for link in self._links]
        self._rng.shuffle(lines)
        lines += [f"{link},another" for link in self._links[:3]]
        self._list.write_text("\n".join(["link,campaign", *lines]) + "\n")

    def _edit_list(self) -> None:
        rng = self._rng
        if rng.random() < 0.5:
            rng.shuffle(self._links)
        if rng.random() < 0.5:
            del self._links[: rng.randrange(len(self._links) // 2 + 1)]
        if rng.random() < 0.5 or len(self._links) < 5:
            self._links += self._new_links(rng.randint(5, 20))
        self._ever |= set(self._links)
        self._write_list()
        self.tally.faults["list edited"] += 1
        self.said.append(f"the list now has {len(self._links)} links")

    def _harm(self) -> None:
        """Damage a file. What it destroyed may be bought again, if that is said, or if nobody can know."""
        harm, place = self._rng.choice(HARMS), self._rng.choice(self._places)
        damage = harm(place, random.Random(self._rng.random()))
        if damage:
            self._damage.append(damage)
            self._allowed += damage.silent
            self.tally.faults[f"damage: {re.sub(r'[-0-9a-f]{5,}|[0-9]+', 'N', damage.what)}"] += 1
            self.said.append(f"damage: {damage.what}")

    def _disturbed(self) -> None:
        rng = self._rng
        mood, fault = self._mood(), self._fault()
        given: dict[str, Any] = {"retry_failed": rng.random() < 0.2, "max_time": "4s"}
        if rng.random() < 0.15:
            given["max_calls"] = rng.randint(1, 40)
        commit = rng.choice((3, 20, 1000))
        disk = Disk(self._disk) if fault.kind == "power cut" else None
        cut = self._server.tell(mood)["cut"]
        seen = self._seen()
        ended = self._run(fault, given, commit)
        self._allowed += self._server.tell(Mood())["cut"] - cut
        if ended.code is None or ended.code > 128 or fault.kind.startswith("fail"):
            self._allowed += self._connections  # the calls in flight
        if disk:
            self._cut_power(disk)
        elif self._torn:
            self._torn = ended.code is None
        else:
            self._only_grew(seen)

    def _mood(self) -> Mood:
        rng = self._rng
        kinds = tuple(rng.sample(FAULTS, rng.randint(1, 3)))
        if "429" in kinds and rng.random() < 0.8:  # each costs a second
            kinds = tuple(kind for kind in kinds if kind != "429") or ("reset",)
        mood = Mood(str(rng.random()), rng.choice((0.03, 0.2, 0.6, 0.95)), kinds, rng.uniform(0.01, 0.1))
        if rng.random() < 0.5:
            mood = replace(mood, share=0.0)
        if rng.random() < 0.15:
            back = rng.choice((0.0, 0.05, 0.3, -1.0))
            mood = replace(mood, dies_after=rng.randint(0, 50), back_seconds=back)
        return mood

    def _fault(self) -> Fault:
        rng = self._rng
        seconds, nth = rng.uniform(0.0, 0.25), int(rng.expovariate(1 / 40)) + 1
        match rng.choice(("", "signal", "signal", "kill", "kill", "fail", "fail", "power cut", "clock", "other")):
            case "signal":
                kind = rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGSTOP"))
                twice = kind not in {"SIGKILL", "SIGSTOP"} and rng.random() < 0.3
                return Fault(kind, seconds, jump_seconds=rng.uniform(0.001, 0.3), twice=twice)
            case "kill":
                return Fault(rng.choice(("kill before", "kill after")), nth=nth)
            case "fail":
                verb = rng.choice((*ERRORS, "write", "write", "fsync"))
                operation = f"{verb} {rng.choice(KINDS)}"
                error = rng.choice(ERRORS[verb])
                return Fault(rng.choice(("fail", "fail on")), operation=operation, nth=nth // 10 + 1, error=error)
            case "power cut":
                return Fault("power cut", nth=nth)
            case "clock":
                return Fault("clock", seconds, jump_seconds=rng.choice(JUMPS))
            case "other" if "localhost" in self._given["base_url"]:
                return Fault("dns", nth=rng.choice((1, 3, 1000)))
        return Fault()

    def _run(self, fault: Fault, given: dict[str, Any], commit: int) -> Ended:
        begun = time.monotonic()
        lists = [] if self._given["group"] else [str(self._list)]
        ended = self._runs.run(lists, {**self._given, **given}, fault, commit)
        self._jumped = self._jumped or fault.kind == "clock"
        self._allowed += self._runs.asked_again()
        self.tally.faults[fault.kind or "none"] += 1
        self._judge(ended, f"{fault}, {given}: {time.monotonic() - begun:.2f} s")
        return ended

    def _judge(self, ended: Ended, what: str) -> None:
        """Note a run's end, and whether it is clear."""
        self.tally.runs += 1
        self.tally.ends[str(ended.code)] += 1
        self._notices += ended.log
        self.said.append(f"- {what}: {'killed' if ended.code is None else ended.code}")
        self.said += [f"    {line}" for line in ended.log.splitlines()]
        if ended.hung:
            self._finding("unclear", f"hung: {what}")
        elif PYTHONS_OWN.search(ended.log) or ended.code not in CODES | {None}:
            self._finding("unclear", f"exit code {ended.code}: {ended.log[-300:]}")
        elif ended.code and ended.code < 128:
            text = _without_numbers(ended.log)
            self.tally.messages[f"{ended.code} {text}"] += 1
            if not ADVICE.search(ended.log):
                self._finding("unclear", f"no advice, exit code {ended.code}: {ended.log[-300:]}")

    def _cut_power(self, disk: Disk) -> None:
        """Leave of the files what a power cut leaves. Answers that the ledger does not know durably may be repeated."""
        loss = self._rng.choice(list(Loss))
        self._torn = True
        disk.do(self._runs.operations())
        disk.lose_power(loss, self._rng.random())
        answered = len(self._server.tell()["answered"])
        rows = sum(known_to(place.ledger).rows for place in self._places)
        self._allowed += max(answered - rows, 0)
        self.said.append(f"the power is cut, what was not synced is {loss}; {rows} rows are known")

    def _seen(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for place in self._places for path in place.published}

    def _only_grew(self, before: dict[Path, bytes]) -> None:
        after = self._seen()
        for path, was in before.items():
            now = after.get(path, b"")
            if not now.startswith(was) or (path.name.startswith("part-") and now != was):
                self._finding("wrong", f"{path.name} was changed after it was published")

    # --- its end --------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Run undisturbed; do what messages say to do, until all is settled or a message says what is damaged."""
        given = {"retry_failed": True}
        if self._server.tell(Mood())["faults"].get("429"):  # which has taught the budget a low limit
            self._remove_budget()
        for _ in range(4):
            ended = self._run(Fault(), given, 1000)
            if ended.code == 0 or not self._follow_advice(ended.log):
                break
        if ended.code != 0 and not (self._damage and ended.code == 8):
            self._finding("wrong", f"the last run ended with {ended.code}: {ended.log[-300:]}")
        harmed = any(damage.public for damage in self._damage)
        for place in self._places:
            if not place.public.exists():  # a run that an output was wrong for begins no other
                continue
            verified = self._runs.verify(place.out, place.work_dir)
            self._judge(verified, f"verify {place.out.relative_to(self._disk)}")
            if verified.code != 0 and ended.code == 0 and not harmed:
                self._finding("wrong", f"verify: {verified.log[-400:]}")
            if ended.code == 0 and not (harmed and verified.code):
                self._check_rows(place)
        if ended.code == 0:
            self._check_calls()

    def _follow_advice(self, log: str) -> bool:
        """Do what a message says; False if it says nothing that a program could do."""
        if "harvester repair" in log:
            named = [place for place in self._places if re.search(rf"{re.escape(str(place.out))}[\s`:,]", log)]
            return all(self._repair(place) for place in named or self._places)
        if "budget.sqlite" in log:
            self._remove_budget()
            return True
        return False

    def _repair(self, place: Place) -> bool:
        repaired = self._runs.repair(place.out, place.work_dir, apply=True, ask_again=False)
        self._judge(repaired, "repair --apply")
        if repaired.code and "--ask-again" in repaired.log:
            repaired = self._runs.repair(place.out, place.work_dir, apply=True, ask_again=True)
            self._judge(repaired, "repair --apply --ask-again")
        if found := re.search(r"remove (\S+) and run the same command again", repaired.log):
            shutil.rmtree(found[1])
            return True
        return repaired.code == 0

    def _remove_budget(self) -> None:
        for file in self._places[0].state.glob("budget.sqlite*"):
            file.unlink()

    def _check_rows(self, place: Place) -> None:
        """Each link of the list has a row or a refusal; nothing has two, but for rows that were refreshed."""
        shape = Shape(self._given["shape"] or "nested")
        try:
            found = [row for path in place.published for row in self._rows_in(path, shape, place.facet)]
            failures = (place.public / "_failures.ndjson").read_text().splitlines()
            known = [json.loads(line) for line in failures]
            own = Counter((row["bitlink"], row["unit_reference"]) for row in found)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            self._finding("wrong", f"the output cannot be read, and verify is content: {error!r}")
            return
        refused = Counter(each["bitlink"] for each in known if each["kind"] == "refused")
        self.tally.rows_checked += len(found)
        firsts = {(row["bitlink"], row["unit_reference"]): row for row in reversed(found)}
        rows: dict[str, list[float]] = {}
        for (link, reference), lines in own.items():
            whole = _rows_of(firsts[link, reference]) if shape is Shape.FLAT else 1
            rows.setdefault(link, []).append(lines / whole)
        for link in sorted(self._ever | set(rows) | set(refused)):
            counts = rows.get(link, [])
            count = (max(counts, default=0) if self._given["refresh"] else sum(counts)) + refused[link]
            if count > 1 and not (self._given["refresh"] and refused[link]):
                self._finding("doubled", f"{place.out}: {link} has {counts} rows and {refused[link]} refusals")
            elif count < 1 and (count or link in self._links):
                failed = [each for each in known if each.get("bitlink") == link]
                self._finding("lost", f"{place.out}: {link} has {counts} rows, but {failed}")
        self._check_contents(place, list(firsts.values()))

    def _rows_in(self, path: Path, shape: Shape, facet: str) -> list[dict[str, Any]]:
        if path.suffix == ".parquet":
            return self._runs.rows_of(path, PartFormat(Format.PARQUET, shape, facet))
        return [json.loads(line) for line in content(path).split(b"\n")[:-1]]

    def _check_contents(self, place: Place, rows: list[dict[str, Any]]) -> None:
        """The rows are those of the facet and the period, with what the list has of their links."""
        for row in rows:
            if row["facet"] != place.facet or (place.day and row["period_start"][:10] != place.day):
                self._finding("wrong", f"{place.out} has the row of another output: {row}")
            if self._given["carry"] and dict(row["carried"] or ()) != {"campaign": campaign_of(row["bitlink"])}:
                self._finding("wrong", f"{place.out}: {row['bitlink']} carries {row['carried']}")

    def _check_calls(self) -> None:
        if self._given["refresh"] and self._jumped:  # answers may have been old enough to be asked for again
            return
        answered: Counter[str] = Counter()
        for call, count in self._server.tell()["answered"].items():
            # Without a period the window ends when the output is begun: a clock that jumped before may have moved it.
            answered[call if self._given["since"] else call.rpartition(" ")[0]] += count
        repeated = answered.total() - len(answered)
        noticed = re.search(r"made again|harvester repair|damaged|missing from", self._notices)
        allowed = self._allowed + (sum(damage.answers for damage in self._damage) if noticed else 0)
        self.said.append(f"{answered.total()} answers for {len(answered)} calls; {allowed} may be repeated")
        self.said += [f"    {call} was answered {count} times" for call, count in answered.items() if count > 1]
        if repeated > allowed:
            self._finding("beyond", f"{repeated} calls were repeated, where {allowed} may be", repeated - allowed)

    def _finding(self, kind: str, text: str, count: int = 1) -> None:
        setattr(self.tally, kind, getattr(self.tally, kind) + count)
        self.tally.findings.append(f"seed {self.seed}: {kind}: {text}")
        self.said.append(f"*** {kind}: {text}")


def campaign_of(link: str) -> str:
    """Return what the list says of a link, which its row carries."""
    return f"campaign {sum(link.encode()) % 7}"


def _rows_of(row: dict[str, Any]) -> int:
    """Count the rows that a link has in flat files: one for each of its metrics, or one without any."""
    asked = (row[name] for name in ("bitlink", "facet", "size", "unit", "units", "unit_reference"))
    return max(1, len(metrics_for(*asked)["metrics"]))


def _without_numbers(log: str) -> str:
    """The last message of a log without what differs between scenarios."""
    last = [line for line in log.strip().splitlines() if line.startswith(("harvester", "stopped", "failed"))][-1:]
    text = last[0] if last else "\n".join(log.strip().splitlines()[-3:])
    return re.sub(r"/dev/shm/\S*/disk|/tmp/\S*/disk", "DISK", re.sub(r"[0-9a-f]{12,}|\d+", "N", text))[:400]


# --- many of them -----------------------------------------------------------------------------------------------------


def play(seeds: Iterable[int], *, keep: Path | None = None) -> Iterator[Scenario]:
    """Play scenarios one after another. keep: a folder for the files of those with findings."""
    memory = Path("/dev/shm")
    with ServerProcess() as server:
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="chaos-", dir=memory if memory.is_dir() else None) as folder:
                scenario = Scenario(seed, Path(folder), server)
                try:
                    scenario.play()
                except Exception as error:
                    error.add_note("\n".join(scenario.said))
                    raise
                if keep and scenario.tally.findings:
                    shutil.copytree(folder, keep / str(seed), dirs_exist_ok=True)
                    (keep / f"{seed}.log").write_text("\n".join(scenario.said) + "\n")
            yield scenario


def warm_up() -> None:
    """Import what runs need, away from the user's own state."""
    for name in [name for name in os.environ if name.startswith(("HARVESTER_", "BITLY_"))]:
        del os.environ[name]
    os.environ.update({"BITLY_TOKEN": TOKEN, STATE_DIR: "/nonexistent/state", TOKEN_STORE: "/nonexistent/tokens"})
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        killed_forks.run(["run", "/no/such/list", "--out", "out"])
    assert threading.active_count() == 1, "a fork has one thread"
    gc.collect()
    gc.freeze()


def _worker(seeds: list[int], keep: Path | None, until: float, results: Any) -> None:
    try:
        for scenario in play(seeds, keep=keep):
            results.put(scenario.tally)
            if time.monotonic() > until:
                break
    except Exception as error:
        results.put(Tally(findings=[f"the runner itself: {error!r}, {error.__notes__}"]))
    finally:
        results.put(None)


def _many(first: int, count: int, jobs: int, keep: Path | None, seconds: float) -> Tally:
    context = multiprocessing.get_context("fork")
    results, until = context.SimpleQueue(), time.monotonic() + seconds
    seeds = range(first, first + count)
    workers = [context.Process(target=_worker, args=(seeds[n::jobs], keep, until, results)) for n in range(jobs)]
    for worker in workers:
        worker.start()
    whole, left = Tally(), jobs
    while left:
        if (tally := results.get()) is None:
            left -= 1
            continue
        whole.add(tally)
        for finding in tally.findings:
            print(finding, flush=True)
        if whole.scenarios % _SHOWN_EVERY == 0:
            print(f"{whole.scenarios} scenarios, {len(whole.findings)} findings", file=sys.stderr, flush=True)
    for worker in workers:
        worker.join()
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the first scenario")
    parser.add_argument("--runs", type=int, default=0, help="scenarios; 0 for one, with its log")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at the same time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no scenario later than this")
    parser.add_argument("--keep", type=Path, help="folder for logs and files of scenarios with findings")
    parser.add_argument("--messages", action="store_true", help="print every message of an end, and how often it came")
    given = parser.parse_args()
    warm_up()
    if not given.runs:
        (scenario,) = play([given.seed], keep=given.keep)
        print("\n".join(scenario.said))
        sys.exit(bool(scenario.tally.findings))
    whole = _many(given.seed, given.runs, given.jobs, given.keep, given.seconds)
    if given.messages:
        print("\n".join(f"{count:>6} {text}" for text, count in whole.messages.most_common()))
    print(whole.table())
    sys.exit(bool(whole.findings))


if __name__ == "__main__":
    main()
