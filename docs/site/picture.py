"""Makes docs/live-display.svg: `harvester demo` in a terminal of 100 columns, at about two thirds of its list."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "live-display.svg"
_COLUMNS, _ROWS = 100, 24
_SHARE = 60
"""The picture shows the first frame from this percentage on."""


def main() -> int:
    """Run the demo, and save the screen when enough of the list is done."""
    process, terminal = pty.fork()
    if not process:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "", "PYTHONUNBUFFERED": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "harvester", "demo"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    screen = pyte.Screen(_COLUMNS, _ROWS)
    stream = pyte.ByteStream(screen)
    picture: list[Text] = []
    while select.select([terminal], [], [], 60)[0]:
        try:
            stream.feed(os.read(terminal, 1 << 16))
        except OSError:  # the end of the demo
            break
        share = re.search(r"(\d+) %", "\n".join(screen.display[-_ROWS:]))
        if not picture and share and int(share[1]) >= _SHARE:
            picture = lines_of(screen)
    os.close(terminal)
    failed = os.waitpid(process, 0)[1] != 0
    if failed or not picture:
        return 1
    console = Console(record=True, width=_COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)
    console.print(Text("$ harvester demo", style="bold"))
    for line in picture:
        console.print(line, no_wrap=True)
    PICTURE.write_text(console.export_svg(title="harvester demo", unique_id="harvester"))
    return 0


def lines_of(screen: pyte.Screen) -> list[Text]:
    """Return the screen's lines down to the last that is not blank, with their colours."""
    lines = []
    for row in range(_ROWS):
        line = Text()
        for column in range(_COLUMNS):
            cell = screen.buffer[row][column]
            line.append(cell.data, Style(color=_colour(cell.fg), bold=cell.bold, reverse=cell.reverse))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _colour(name: str) -> str | None:
    """Return rich's name for a colour of pyte's."""
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return name.replace("brown", "yellow").replace("brightbrown", "bright_yellow").replace("brightb", "bright_b")


if __name__ == "__main__":
    sys.exit(main())
