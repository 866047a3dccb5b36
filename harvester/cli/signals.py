"""Signals: one ends a run in good order, a second one the process at once."""

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from harvester.events import Event
from harvester.shutdown import ShutdownSignal, Stop, StopReason

if TYPE_CHECKING:
    from harvester.reporting.reporter import Reporter


def die_of_signals() -> None:
    """Let a signal before the run has begun end the process, also PID 1, to which the kernel gives no default."""

    def heard(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):  # Python itself has a handler for SIGINT
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, heard)


def stop_on_signals(shutdown: ShutdownSignal, observer: "Reporter") -> None:
    """End the run at the first signal, and the process at the second: what is known is in the journal by then."""
    loop = asyncio.get_running_loop()

    def heard(number: signal.Signals) -> None:
        if shutdown.stop is not None and shutdown.stop.reason is StopReason.SIGNAL:
            observer.close()
            os._exit(128 + number)
        text = f"{number.name}: stopping; calls in flight get 5 s (a second signal ends at once)"
        observer.tell(Event.RUN_STOPPING, text, signal=number.name)
        shutdown.request(Stop(StopReason.SIGNAL, f"{number.name} was received"))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and shells in the background ignore some
            loop.add_signal_handler(number, heard, number)
