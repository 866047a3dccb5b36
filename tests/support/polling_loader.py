"""A loader that polls a folder: reads every part that it sees, each time, and holds it against what it saw before.

`python -m tests.support.polling_loader FOLDER` polls until its standard input ends, then prints a line
`{"polls": 400, "parts": 12, "rows": 240, "wrong": []}`. wrong: what no loader may ever see: a part that is torn, has
changed, or is gone.
"""

import gzip
import hashlib
import io
import json
import os
import select
import sys
from pathlib import Path

from pyarrow import parquet

POLL_SECONDS = 0.003


def rows_in(name: str, data: bytes) -> int:
    """Count a part's rows; raises whatever its format's reader raises at a torn one."""
    if name.endswith(".parquet"):
        return int(parquet.read_table(io.BytesIO(data)).num_rows)
    text = gzip.decompress(data) if name.endswith(".gz") else data
    lines = text.split(b"\n")
    if lines.pop():
        raise ValueError("no line feed at its end")
    return len([json.loads(line) for line in lines])


class Poller:
    """What was seen of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}
        self.polls = self.rows = 0
        self.wrong: list[str] = []

    def poll(self) -> None:
        """Read every part that is there."""
        self.polls += 1
        try:
            names = {name for name in os.listdir(self._folder) if name.startswith("part-")}
        except FileNotFoundError:
            names = set()
        self.wrong += [f"{name} is gone" for name in self._digests.keys() - names]
        for name in sorted(names):
            data = (self._folder / name).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if name not in self._digests:
                self._take(name, data, digest)
            elif self._digests[name] != digest:
                self.wrong.append(f"{name} has changed")

    def _take(self, name: str, data: bytes, digest: str) -> None:
        self._digests[name] = digest
        try:
            self.rows += rows_in(name, data)
        except Exception as error:  # whatever a torn file makes of a reader
            self.wrong.append(f"{name} is torn: {error!r}")

    def report(self) -> str:
        """Give what was seen, as a line of JSON."""
        seen = {"polls": self.polls, "parts": len(self._digests), "rows": self.rows, "wrong": self.wrong[:20]}
        return json.dumps(seen)


def main() -> None:
    poller = Poller(Path(sys.argv[1]))
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        poller.poll()
    poller.poll()
    print(poller.report())


if __name__ == "__main__":
    main()
