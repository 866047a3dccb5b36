"""The exceptions, grouped by what happens next.

HarvesterError
├── InvalidBitlink      this line is reported with its reason, and the run goes on
├── RunStopping         this call was not sent: the run is ending, and the next invocation will send it
├── UsageError          no request was sent: the command, the configuration or the list must change
│   └── InputBroken     the list cannot be read further: what was harvested stays, fix the list and run again
├── DatasetBusy         another process works on this dataset: run again when it has ended
├── ConnectionsBusy     other processes use all of this machine's connections: run again when one has ended
├── BudgetUnreachable   the Redis that hosts share cannot be reached: run again when it can
├── RunStopped          the run ended before its list did: go on when its reason has passed, `until` says when
├── NoRow               this link has no row
│   ├── LinkRefused     Bitly has said no: asking again is useless
│   └── LinkFailed      no answer was good: the link may be asked for again later
└── OutputError         the output or its private state cannot be trusted or written: fix that, then run again
    ├── StoreRefused    an object store refuses us, and will again: fix what the text names, then run again
    ├── BudgetBusy      another process holds the budget's file: ask again in a moment
    └── ReaderClosed    nobody reads standard output any more: end quietly
"""

import contextlib
import errno
from collections.abc import Iterator


class HarvesterError(Exception):
    """Any error that harvester explains; its text says what to do next."""


class InvalidBitlink(HarvesterError, ValueError):
    """A line is not a bitlink; the text is the reason, without the line."""


class RunStopping(HarvesterError):
    """The run is ending, so what was being waited for will not be sent."""


class UsageError(HarvesterError):
    """The command, its configuration or its input must change before anything can be asked.

    option: the option whose value is wrong, which the text is about and begins with; None where it is no option's.
    """

    def __init__(self, text: str, *, option: str | None = None) -> None:
        self.option = option
        self._text = text
        super().__init__(self.named(option) if option else text)

    def named(self, origin: str) -> str:
        """Return the text with another name for its option: that of the variable or key that the value came from."""
        return origin + ("" if self._text.startswith(":") else " ") + self._text


class InputBroken(UsageError):
    """A list of links could not be read to its end."""


class DatasetBusy(HarvesterError):
    """Another live process holds this dataset's lock."""


class ConnectionsBusy(HarvesterError):
    """As many live processes share this machine's connections as there are connections."""


class BudgetUnreachable(HarvesterError):
    """The shared budget cannot be reached, so that nothing can be counted."""


class RunStopped(HarvesterError):
    """A run ended before its list did.

    reason: a word for programs, as in the manifest's `stopped`. message: for a person. until: when to run again, UTC,
    if known.
    """

    def __init__(self, reason: str, message: str, until: str | None = None) -> None:
        super().__init__(reason, message, until)
        self.reason = reason
        self.message = message
        self.until = until

    def __str__(self) -> str:
        if not self.until:
            return self.message
        day, _, time = self.until.partition("T")
        return f"{self.message} (until {day} {time[:5]} UTC)"


class NoRow(HarvesterError):
    """A link's call ended without a row. status: HTTP's, None where no answer came. message: Bitly's, or a reason."""

    def __init__(self, bitlink: str, status: int | None, message: str) -> None:
        super().__init__(bitlink, status, message)
        self.bitlink = bitlink
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.bitlink}: {self.status or 'no answer'} {self.message}".rstrip()


class LinkRefused(NoRow):
    """Bitly has definitely refused this link."""


class LinkFailed(NoRow):
    """The attempts that a call is worth were made, and no answer was good."""


class OutputError(HarvesterError):
    """The output, the journal or the ledger cannot be written, or is not what was left there."""


class StoreRefused(OutputError):
    """An object store refuses the credentials, the clock or the region: asking again changes nothing."""


class ReaderClosed(OutputError):
    """The reader of standard output has closed its end."""


class BudgetBusy(OutputError):
    """The budget's file was held by another process for longer than the event loop may wait."""


def install_line(extra: str) -> str:
    """Return the shell command that installs an extra."""
    return f"pip install 'bitly-harvester[{extra}]'"


_IN_THE_WAY = {
    errno.EISDIR: "it is a folder where a file belongs: move it away, then run the same command again",
    errno.ELOOP: "it is a symbolic link where a file belongs: move it away, then run the same command again",
}


@contextlib.contextmanager
def as_output_error(path: str) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names the file, of a rename the target.

    path: named where the error names none.
    """
    try:
        yield
    except OSError as error:
        why = _IN_THE_WAY.get(error.errno or 0, error.strerror)
        raise OutputError(f"{error.filename2 or error.filename or path}: {why}") from error
