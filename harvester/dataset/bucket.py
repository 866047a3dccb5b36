"""A dataset's place in an object store: the claim on its prefix, its parts, and the files beside them.

The private state, and every file before it is uploaded, lies in the work dir. The claim ties the two together.
"""

import mmap
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from harvester._version import __version__
from harvester.dataset.ledger import Ledger, Part
from harvester.dataset.publisher import FAILURES, MANIFEST, SUCCESS, listed_parts
from harvester.errors import OutputError, StoreRefused
from harvester.jsonlines import object_in
from harvester.storage.location import OutputLocation
from harvester.storage.object_store import ObjectStorage

CLAIM = "_claim.json"
MOST_PART_BYTES = 512 * 1024 * 1024
"""--part-bytes at most: a part goes in one request, which may have 5 GiB, and flat rows are several times as long."""
_TRIES = 3


class Bucket:
    """What a run publishes under its prefix. warn: called with what a person should know.

    Parts are created and never replaced; `_manifest.json` and `_failures.ndjson` are replaced, each in one request, so
    that nobody sees half of one.
    """

    def __init__(self, place: OutputLocation, objects: ObjectStorage, warn: Callable[[str], None]) -> None:
        self.folder = place.public
        self._place = place
        self._objects = objects
        self._warn = warn
        self._unsent: set[str] = set()
        self._told = False

    # --- the claim -------------------------------------------------------------------------------------------------

    def claim(self, ledger: Ledger) -> None:
        """Make the prefix ours, or see that it is: only the ledger that claimed it may publish there.

        Raises:
            OutputError: it belongs to another work dir, or was begun by one that is lost.
        """
        ours = ledger.meta().get("claim")
        if ours is None:
            ours = secrets.token_hex(16)
            ledger.repin({"claim": ours})
        found = self._objects.get(CLAIM)
        if found is None:
            self._check_unused(ledger)
            text = orjson.dumps(self._claim_of(ledger, str(ours)), option=orjson.OPT_INDENT_2)
            found = text if self._objects.create(CLAIM, text) else self._objects.get(CLAIM)
            self._check_creates_only(text)
        claimed = object_in(found)
        if claimed.get("claim") != ours:
            raise self._taken(claimed)

    def _claim_of(self, ledger: Ledger, claim: str) -> dict[str, Any]:
        return {
            "claim": claim,
            "run_id": ledger.meta()["run_id"],
            "host": socket.gethostname(),
            "work_dir": os.fsencode(self._place.private).decode(errors="backslashreplace"),
            "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tool": f"harvester {__version__}",
        }

    def _check_unused(self, ledger: Ledger) -> None:
        """Without a claim a prefix is new, or the claim was taken away for this ledger to go on."""
        if ledger.unused and any(thing.name == MANIFEST for thing in self._objects.listing()):
            raise OutputError(
                f"{self._place.out} was begun before, and not with --work-dir {self._place.private}. Without the work "
                "dir that it was begun with nobody knows which calls were paid for: name that one, or begin a new "
                "--out with the links that this one lacks"
            )

    def _check_creates_only(self, text: bytes) -> None:
        """Some stores that speak S3 pass over If-None-Match, and would let one run replace what another published."""
        if self._objects.create(CLAIM, text):
            raise OutputError(
                f"{self._place.out}: this store replaces what is there when it is asked to create only: harvester "
                "cannot publish safely there. Update the store, or name another --out"
            )

    def _taken(self, claimed: Mapping[str, Any]) -> OutputError:
        who = " ".join(f"{name} {claimed.get(name, 'unknown')}" for name in ("host", "work_dir", "run_id", "made"))
        return OutputError(
            f"{self._place.out} belongs to another work dir ({who}), which knows what was paid for and published: run "
            "there, or bring that work dir here. If it is lost, keep this output as it is and begin a new --out with "
            f"the links that it lacks; only when all there is to be thrown away, delete every object under "
            f"{self._place.out}, {CLAIM} last, and run the same command again"
        )

    # --- parts -----------------------------------------------------------------------------------------------------

    moved_when_gone = False

    def holds(self, part: Part) -> bool:
        """True when the part is there, byte for byte; False when nothing bears its name.

        Raises:
            OutputError: something else bears its name.
        """
        found = self._objects.digest(part.name)
        if found is None:
            return False
        if found != (part.bytes, part.sha256):
            raise OutputError(f"{self._place.out}/{part.name} is in the way of a part: move it away")
        return True

    def put(self, hidden: str, part: Part) -> None:
        """Upload a part without replacing, and read it back: what was received is what was meant.

        One that is gone between the two was taken by a loader.
        """
        with open(hidden, "rb") as stream:
            # Never closed by hand: a request that failed may hold it for a moment longer.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        for _ in range(_TRIES):
            created = self._objects.create(part.name, data)
            if self.holds(part) or created:
                return
        raise OutputError(f"{self._place.out}/{part.name} comes and goes: let nobody take parts, then run again")

    def check_known(self, known: set[str]) -> None:
        """Make sure that the ledger knows every part under the prefix, and every one that the manifest lists: a loader
        may have moved that away.

        Raises:
            OutputError: it does not.
        """
        there = {thing.name for thing in self._objects.listing() if thing.name.startswith("part-")}
        for name in sorted(there | listed_parts(self._objects.get(MANIFEST))):
            if name not in known:
                raise OutputError(
                    f"{self._place.out}/{name} is unknown to the ledger in {self._place.private}: the ledger is "
                    "older than this output, or the part is another program's. Put the newer work dir back, or move "
                    "the part away, or begin a new --out"
                )

    # --- the files beside them -------------------------------------------------------------------------------------

    def show(self, name: str, *, last: bool) -> None:
        """Upload a `_` file as it lies in the work dir. While the run goes on an outage is told, and mended later.

        last: True at the run's end, when everything that is still to be uploaded must be.
        """
        self._unsent.add(name)
        try:
            for waiting in sorted(self._unsent, key=lambda waiting: waiting == MANIFEST):
                with open(os.path.join(self.folder, waiting), "rb") as stream:
                    self._objects.replace(waiting, stream.read(), patient=last)
                self._unsent.discard(waiting)
        except OutputError as error:
            if last or isinstance(error, StoreRefused):
                raise
            if not self._told:
                self._warn(f"{error}; it is tried again later, and the run goes on")
            self._told = True
        else:
            self._told = False

    def show_manifest(self, *, last: bool) -> None:
        """Upload `_manifest.json`, after what else is to be uploaded."""
        self.show(MANIFEST, last=last)

    def show_failures(self) -> None:
        """Upload `_failures.ndjson`."""
        self.show(FAILURES, last=False)

    def declare_success(self) -> None:
        """Create `_SUCCESS`; fine if it is there."""
        self._objects.create(SUCCESS, b"")

    def take_success_back(self) -> None:
        """Delete `_SUCCESS`."""
        self._objects.delete(SUCCESS)

    def hurry(self) -> None:
        """Have little patience from now on: the run is to end."""
        self._objects.hurry()
