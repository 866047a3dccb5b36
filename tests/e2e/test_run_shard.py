"""`--shard 3/8`: several jobs with the same list, each with a part of it and an output of its own."""

from collections.abc import Callable
from pathlib import Path

import harvester as library
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, harvester
from tests.support.output_checks import manifest, rows

LINKS = [f"bit.ly/{number}" for number in range(30)]


def test_the_shards_of_a_list_have_each_link_once(serve: Callable[..., Served], tmp_path: Path) -> None:
    served, links = serve(), tmp_path / "links.txt"
    links.write_text("\n".join([*LINKS, "no link", "", *LINKS[:3]]) + "\n")
    found: list[str] = []
    for number in (1, 2, 3):
        out = tmp_path / f"shard-{number}"
        command = ["run", str(links), "--out", str(out), "--base-url", served.url, "--shard", f"{number}/3"]
        done = harvester(*command, "--max-invalid", "100%", *NO_LIMITS)
        assert done.returncode == 0, done.stderr
        assert (out / "_SUCCESS").exists()
        assert harvester("verify", str(out)).returncode == 0
        assert harvester(*command, "--max-invalid", "100%", *NO_LIMITS).returncode == 0  # and makes no call again
        found += [row["bitlink"] for row in rows(out)]
        assert manifest(out)["list"]["lines"] < 20
    assert sorted(found) == sorted(LINKS)


def test_a_shard_without_links_is_complete(serve: Callable[..., Served], tmp_path: Path) -> None:
    links = tmp_path / "links.txt"
    links.write_text("bit.ly/a\n")
    command = ["run", str(links), "--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS]
    done = harvester(*command, "--shard", "2/8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


async def test_links_from_python_are_divided_alike(serve: Callable[..., Served], tmp_path: Path) -> None:
    found: list[str] = []
    url = serve().url
    for number in (1, 2):
        out = tmp_path / str(number)
        await library.harvest(
            LINKS, out=out, token=TOKEN, base_url=url, shard=f"{number}/2", per_minute=0, per_hour=0, per_month=0
        )
        found += [row["bitlink"] for row in rows(out)]
    assert sorted(found) == sorted(LINKS)
