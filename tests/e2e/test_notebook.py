"""The example notebook, run by a real kernel against the sandbox."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from harvester.sandbox import metrics_for
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN
from tests.support.output_checks import check_reconciled, expected_metrics, rows

NOTEBOOK = ROOT / "examples" / "one-link-and-a-list.ipynb"
LINK = "bit.ly/3lU6hRt"
SECONDS = 60
"""For a cell, and for the kernel's start."""


def opened(path: Path) -> Any:
    read: Any = nbformat.read
    return read(path, as_version=4)


def printed(cell: Any) -> str:
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the notebook, and nothing of the user's Jupyter."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_the_notebook_shows_one_link_and_harvests_a_list(
    workplace: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient  # noqa: PLC0415 - a quarter of a second that only this test needs

    served, links = serve(), {f"bit.ly/{i}" for i in range(40)}
    (workplace / "links.txt").write_text("".join(f"https://{link}\n" for link in sorted(links)))
    monkeypatch.setenv("BITLY_BASE_URL", served.url)
    notebook = opened(NOTEBOOK)
    resources = {"metadata": {"path": str(workplace)}}
    NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, resources=resources).execute()

    by_hand, by_harvester, a_list, busiest = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    answer, row = json.loads(printed(by_hand)), json.loads(printed(by_harvester))
    assert answer == metrics_for(LINK, "referrers", 50, unit_reference=answer["unit_reference"])
    assert row["metrics"] == answer["metrics"] == expected_metrics(row)
    assert json.loads(printed(a_list))["complete"]
    (line,) = [output for output in a_list["outputs"] if output["output_type"] == "display_data"]
    shown = " ".join(re.sub(r"\x1b\[[\d;]*m", "", line["data"]["text/plain"]).split())
    assert shown.startswith("40 of 40 links ━")
    assert " · 40 rows · 0 refused · 0 failed · " in shown
    check_reconciled(workplace / "referrers", links)
    clicks: Counter[str] = Counter()
    for row in rows(workplace / "referrers"):
        clicks.update({metric["value"]: metric["clicks"] for metric in row["metrics"]})
    shown = busiest["outputs"][0]["data"]["text/plain"]
    assert [line.split()[-1] for line in shown.splitlines()[1:]] == [str(most) for _, most in clicks.most_common(10)]


def test_the_notebook_is_stored_without_outputs() -> None:
    text, notebook = NOTEBOOK.read_text(), opened(NOTEBOOK)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert "/home/" not in text
    assert "/root/" not in text
