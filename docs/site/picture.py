"""Makes docs/live-display.svg: the live display of `harvester demo`, at about two thirds of its list."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "live-display.svg"
_COLUMNS, _ROWS = 90, 40
_SHARE = 60
"""The picture shows the first frame from this percentage on."""
_COMMAND = ["harvester", "demo", "--out", "lake"]


def main() -> int:
    """Run the demo, and save the display when enough of the list is done."""
    with tempfile.TemporaryDirectory() as folder:
        return save(folder)


def save(folder: str) -> int:
    """Run the demo in a folder, with a terminal of its own, and save the picture. Return 1 if there is none."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": str(PICTURE.parents[1])}
        os.execv(sys.executable, [sys.executable, "-m", *_COMMAND])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    screen = pyte.Screen(_COLUMNS, _ROWS)
    stream = pyte.ByteStream(screen)
    picture: list[Text] = []
    while select.select([terminal], [], [], 60)[0]:
        try:
            stream.feed(os.read(terminal, 1 << 16))
        except OSError:  # the end of the demo
            break
        share = re.search(r"^\d+ of \d+ links .* (\d+) %", "\n".join(screen.display), re.MULTILINE)
        if not picture and share and int(share[1]) >= _SHARE:
            picture = lines_of(screen)
    os.close(terminal)
    failed = os.waitpid(process, 0)[1] != 0
    if failed or not picture:
        return 1
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text("$ " + " ".join(_COMMAND)), highlight=False)
        for line in picture:
            console.print(line, no_wrap=True)
    PICTURE.write_text(console.export_svg(title="harvester", unique_id="harvester"))
    return 0


def lines_of(screen: pyte.Screen) -> list[Text]:
    """Return the display's lines with their colours: from its title on, below the messages that scroll away."""
    lines = []
    for row in range(_ROWS):
        line = Text()
        cells = [screen.buffer[row][column] for column in range(_COLUMNS)]
        for (colour, bold), run in groupby(cells, lambda cell: (cell.fg, cell.bold)):
            line.append("".join(cell.data for cell in run), Style(color=_colour(colour), bold=bold))
        line.rstrip()
        lines.append(line)
    first = next(number for number, line in enumerate(lines) if line.plain.startswith("referrers of "))
    return [line for line in lines[first:] if line.plain]


def _colour(name: str) -> str | None:
    """Return rich's name for a colour of pyte's."""
    return {"default": None, "brown": "yellow"}.get(name, name)


if __name__ == "__main__":
    sys.exit(main())
