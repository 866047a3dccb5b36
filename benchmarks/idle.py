"""What does --skip-idle save, and does a kill cost more? A group of 5,000 links, of which one in ten may have clicks.

usage: python -m benchmarks.idle [--links 5000] [--active 0.1] [--kills 5] [--folder /dev/shm]

Three harvests of the same group from a sandbox, whose log counts the requests: one that asks for every link, one with
--skip-idle, and one with --skip-idle that is killed (SIGKILL) again and again. Promises: with --skip-idle at most 11 %
of the links' number is sent as calls and exports together; the sums are the same; after the kills every link has one
row, and no more was sent twice than was in flight: an export and five calls a kill.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import NO_LIMITS, ROOT, said
from harvester.sandbox import Sandbox, SandboxOptions, serving
from harvester.sandbox.groups import LARGE, link_of
from tests.support.servers import in_thread

_SHARE = 0.11


class Sent(NamedTuple):
    """Requests by kind, from the server's log."""

    calls: int
    exports: int
    pages: int
    limits: int


def sent(sandbox: Sandbox) -> Sent:
    """Return the requests that a sandbox has received."""
    pages, exports = (sandbox.helped[f"/groups/{LARGE}/{route}"] for route in ("bitlinks", "exports"))
    return Sent(sum(sandbox.requests.values()), exports, pages, sum(sandbox.helped.values()) - pages - exports)


def listed(number: int, active: float) -> list[str]:
    """Return the bitlinks of the group's first links, custom ones among them, as the sandbox lists them."""
    links = [link for place in range(number) if not (link := link_of(LARGE, place, active))["archived"]]
    names = [name for link in links for name in (link["id"], *link["custom_bitlinks"])]
    return [name.removeprefix("https://") for name in names]


def links_for(bitlinks: int, active: float) -> int:
    """Return how many links a group needs for its list to have at least this number of bitlinks."""
    number = bitlinks // 2
    while len(listed(number, active)) < bitlinks:
        number += 10
    return number


def clicks(out: Path) -> dict[str, int]:
    """Return the clicks of each bitlink; raises SystemExit for one with two rows."""
    found: dict[str, int] = {}
    for part in out.glob("part-*"):
        for line in gzip.decompress(part.read_bytes()).splitlines():
            row = json.loads(line)
            if row["bitlink"] in found:
                raise SystemExit(f"two rows for {row['bitlink']}")
            found[row["bitlink"]] = row["clicks_listed"]
    return found


def harvested(sandbox: Sandbox, out: Path, *options: str, kill_at: Callable[[int], bool] | None = None) -> int:
    """Harvest the group until it is complete, and give how often that was killed. kill_at: by requests so far."""
    kills = 0
    with in_thread(serving(sandbox)) as url:
        command = [sys.executable, "-m", "harvester", "run", "--group", LARGE, "--out", str(out), "--quiet", *options]
        words = [*command, "--base-url", url, "--state-dir", str(out.with_suffix(".state")), *NO_LIMITS]
        while True:
            process = subprocess.Popen(words, cwd=ROOT, env={"BITLY_TOKEN": "benchmark"})
            while process.poll() is None:
                if kill_at is not None and kill_at(sum(sent(sandbox))):
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.002)
            if process.wait() == 0:
                return kills
            if kill_at is None:
                raise SystemExit("the harvest has failed")


def main() -> int:
    """Measure; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="Requests of a group with and without --skip-idle.")
    parser.add_argument("--links", type=int, default=5000, help="bitlinks in the group, at least")
    parser.add_argument("--active", type=float, default=0.1)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the outputs lie meanwhile")
    options = parser.parse_args()
    number = links_for(options.links, options.active)
    names = listed(number, options.active)

    def sandbox() -> Sandbox:
        calm = SandboxOptions(per_minute=0, per_hour=0, per_month=0, latency_ms=5, errors=0.0)
        return Sandbox(replace(calm, links=number, active=options.active))

    with tempfile.TemporaryDirectory(prefix="harvester-idle-", dir=options.folder) as folder:
        every, few, killed = sandbox(), sandbox(), sandbox()
        harvested(every, Path(folder, "every"))
        harvested(few, Path(folder, "few"), "--skip-idle")
        whole = sum(sent(few))
        marks = [whole * (number + 1) // (options.kills + 1) for number in range(options.kills)]

        def kill_at(requests: int) -> bool:
            if marks and requests >= marks[0]:
                marks.pop(0)
                return True
            return False

        kills = harvested(killed, Path(folder, "killed"), "--skip-idle", kill_at=kill_at)
        rows = [clicks(Path(folder, each)) for each in ("every", "few", "killed")]
    print(f"{len(names):,} bitlinks; sums: {', '.join(f'{sum(each.values()):,}' for each in rows)}")
    for name, each in (("every link", every), ("--skip-idle", few), (f"and {kills} kills", killed)):
        calls, exports, pages, limits = sent(each)
        both = calls + exports
        print(
            f"{name:<14}{calls:>6,} calls + {exports:>3,} exports = {both:>6,} ({both / len(names):.1%}); "
            f"+ {pages} pages + {limits} for limits = {sum(sent(each)):,}"
        )
    repeated = sum(killed.requests.values()) - len(killed.requests)
    again = sum(map(len, killed.exported)) - len({name for links in killed.exported for name in links})
    print(f"after {kills} kills: {repeated} calls were sent twice, and {again} links exported twice")
    held = rows[0] == rows[1] == rows[2] and set(rows[0]) == set(names)
    held = held and sent(few).calls + sent(few).exports <= _SHARE * len(names)
    held = held and repeated <= 5 * kills and again <= 200 * kills
    print(said(holds=held))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
