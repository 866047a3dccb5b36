"""The distribution is `bitly-harvester`, its wheel works alone, and the index's other `harvester` is recognised."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester import __version__
from harvester._version import DISTRIBUTION
from tests.support.commands import ROOT

MADE = {"__pycache__", "build", "dist", "mutants"}
TEXTS = {".py", ".md", ".toml", ".txt", ".yml", ".ipynb", ""}
FOREIGN = re.compile(
    r"""(?<![\w/-])harvester\\?\[|(?<!un)install\b[^\n`|&;]*[ '"]harvester(?![\w/-])|--upgrade harvester(?![\w/-])"""
)
"""The index's `harvester` as a requirement, with extras or behind `pip install`."""


def texts() -> Iterator[Path]:
    """The repository's texts."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name not in MADE]
        yield from (path for name in files if (path := Path(folder, name)).suffix in TEXTS and path.is_file())


def test_no_file_of_the_repository_installs_somebody_elses_harvester() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts()
        if path != Path(__file__)
        for line in path.read_text(errors="replace").splitlines()
        if FOREIGN.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["pip install harvester", "pip install 'harvester[parquet]'", "RUN pip install -U harvester && true"]
)
def test_an_instruction_that_installs_it_would_be_found(line: str) -> None:
    assert FOREIGN.search(line)
    assert not FOREIGN.search(line.replace("harvester", DISTRIBUTION))


class Installed:
    """The wheel in an environment of its own, whose other packages are those of the tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (self.packages,) = folder.glob("lib/python*/site-packages")
        # A line of a .pth file adds the folder, and not what the .pth files in it add: the tests' editable harvester.
        (self.packages / "of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.folder = folder
        pip("--python", str(folder / "bin/python"), "install", "--no-deps", str(wheel))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's `harvester WORDS`, away from the repository."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return subprocess.run(
            [self.folder / "bin/harvester", *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def pip(*words: str) -> None:
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-m", "pip", *words], env=offline, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed") / "venv", wheel)


def test_the_wheel_has_our_name_and_every_data_file(wheel: Path) -> None:
    assert wheel.name == f"bitly_harvester-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"harvester/demo-links.txt", "harvester/py.typed", "harvester/config.example.toml"} <= names
    assert {f"harvester/reports/report.{kind}" for kind in ("html.jinja", "css", "js")} <= names
    assert {name.partition("/")[0] for name in names} == {"harvester", f"bitly_harvester-{__version__}.dist-info"}


def test_an_installed_wheel_runs_and_prints_the_example(installed: Installed) -> None:
    shown = installed.run("config", "--example")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (ROOT / "config.example.toml").read_text()
    assert installed.run("--version").stdout.strip() == __version__
    (installed.folder / "my.toml").write_text(shown.stdout)
    assert installed.run("config", "--config", "my.toml").returncode == 0


def test_an_installed_wheel_knows_its_demonstrations_list(installed: Installed) -> None:
    """The demonstration itself takes seconds: that it begins, with its list, is enough here."""
    refused = installed.run("demo", "--out", "/dev/null/out")
    assert f"list:    {installed.packages}/harvester/demo-links.txt" in refused.stdout
    assert refused.returncode == 8


CURE = "run pip uninstall -y harvester, then pip install --force-reinstall --no-deps bitly-harvester"


@pytest.fixture
def stranger(installed: Installed) -> Iterator[Path]:
    """The index's harvester as pip leaves it beside ours."""
    folder = installed.packages / "harvester-0.5.2.dist-info"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_another_harvester_in_the_same_folder_is_warned_of(installed: Installed, stranger: Path) -> None:
    done = installed.run("config")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == (
        f"warning: the package harvester 0.5.2 in {installed.packages} is another program that shares files with this "
        f"one: {CURE}"
    )


def test_another_harvester_that_has_overwritten_ours_ends_the_command(installed: Installed, stranger: Path) -> None:
    ours = [installed.packages / "harvester" / name for name in ("__init__.py", "_version.py")]
    before = [path.read_text() for path in ours]
    try:
        ours[0].write_text("")
        ours[1].write_text("__version__ = version = '0.5.2'\n")
        done = installed.run("config")
    finally:
        for path, text in zip(ours, before, strict=True):
            path.write_text(text)
    assert done.returncode == 2
    assert "harvester 0.5.2, another program, has overwritten files of this one" in done.stderr
    assert done.stderr.rstrip().endswith(CURE)
