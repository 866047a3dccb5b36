"""Signal handlers: the first signal stops a run in order, the second one ends the process at once."""

import asyncio
import os
import signal

from harvester.events import Event
from harvester.reporting.reporter import Reporter
from harvester.shutdown import ShutdownSignal, Stop, StopReason


def die_of_signals() -> None:
    """Install handlers that end the process; without them, PID 1 would ignore these signals until the run has begun."""

    def exit_with(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):  # Python itself has a handler for SIGINT
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, exit_with)


def stop_on_signals(shutdown: ShutdownSignal, observer: Reporter) -> None:
    """Install handlers that stop the run at the first signal and end the process at the second.

    To end at once loses no answer: each is in the journal as soon as it is known.
    """
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if shutdown.stop is not None and shutdown.stop.reason is StopReason.SIGNAL:
            observer.close()
            os._exit(128 + number)
        text = f"{number.name}: stopping; calls in flight get 5 s (a second signal ends at once)"
        observer.tell(Event.RUN_STOPPING, text, signal=number.name)
        shutdown.request(Stop(StopReason.SIGNAL, f"{number.name} was received"))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup and by shells for background jobs: keep it
            loop.add_signal_handler(number, stop, number)
