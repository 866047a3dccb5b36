"""Commands before the first harvest: `login`, `logout`, `sandbox` and `demo`."""

import asyncio
import signal

from harvester.cli.exit_codes import exit_code
from harvester.config.options import LoginOptions, TokenStoreOptions
from harvester.errors import UsageError
from harvester.reporting.terminal import print_out, say
from harvester.shutdown import OK


def login(*, options: LoginOptions | None = None) -> int:
    """Keep a token for later runs: by Bitly's own page in a browser, or (--with-token) one that you have."""
    from harvester.cli import login as logins

    print_out(logins.play(options or LoginOptions(), say))
    return OK


def logout(*, options: TokenStoreOptions | None = None) -> int:
    """Forget the token that `harvester login` has kept."""
    from harvester.cli import login as logins

    print_out(logins.undo(options or TokenStoreOptions(), say))
    return OK


def sandbox(
    *,
    port: int = 8080,
    connections: int = 5,
    per_minute: int = 100,
    per_hour: int = 1000,
    per_month: int = 5000,
    latency_ms: float = 80.0,
    errors: float = 0.01,
) -> int:
    """Serve a Bitly look-alike on 127.0.0.1, until interrupted.

    Parameters
    ----------
    port:
        The port to listen on; 0 for a free one.
    connections:
        Connections that are allowed at once.
    per_minute:
        Requests that are allowed in a minute; 0 for no limit.
    per_hour:
        Requests that are allowed in an hour; 0 for no limit.
    per_month:
        Requests that are allowed in a month; 0 for no limit.
    latency_ms:
        Milliseconds that an answer takes.
    errors:
        The share of answers that are 500 or 503, from 0 to 1.
    """
    from harvester.sandbox import Sandbox, SandboxOptions, serving

    options = SandboxOptions(connections, per_minute, per_hour, per_month, latency_ms, errors)

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with serving(Sandbox(options), port) as url:
            print(f"sandbox: {url}", flush=True)
            await stop.wait()

    try:
        asyncio.run(serve())
    except (OSError, OverflowError) as error:
        raise UsageError(f"{port}: {getattr(error, 'strerror', error)}", option="--port") from error
    return OK


def demo(*, out: str | None = None) -> int:
    """Harvest a bundled list from a sandbox of its own: no token, no account, twenty seconds.

    Parameters
    ----------
    out:
        Where the rows go; by default a new temporary folder.
    """
    from harvester.cli import demo as demonstration

    return exit_code(demonstration.play(out))
