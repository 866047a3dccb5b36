"""The manifest's part that a harvest knows: how it stands or ended, and what its budget holds."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from harvester.bitly import utc_text
from harvester.budget import Budget
from harvester.errors import OutputError
from harvester.quota import WindowState
from harvester.status import Outcome, Status, Waiting


def harvest_report(
    status: Status, outcome: Outcome | None, invocation: dict[str, Any], budget: dict[str, Any]
) -> dict[str, Any]:
    """Give how a harvest stands, or how it ended. outcome: None while it runs; invocation, budget: their reports."""
    stop = outcome.stop if outcome else None
    return {
        "complete": bool(outcome and outcome.complete),
        "stopped": {"reason": stop.reason, "message": stop.message, "until": stop.until} if stop else None,
        "input_read_to_end": status.read_to_end,
        "list": asdict(status.listed) if status.read_to_end else None,
        "ended": utc_text(datetime.now(UTC)) if outcome else None,
        "invocation": invocation,
        "left": status.outstanding,
        "left_failed": status.left_failed,
        "pending": status.pending,
        "budget": budget,
    }


def budget_report(budget: Budget, waiting: Waiting | None) -> dict[str, Any]:
    """Say which window binds and until when, and what each holds; as far as the budget's file can be read."""
    try:
        windows = budget.windows()
    except OutputError:
        windows = []
    return {
        "account": budget.account.name,
        "token": budget.account.token,
        "binds": {
            "window": waiting.window,
            "limit": waiting.limit or None,
            "until": utc_text(waiting.until) if waiting.until else None,
        }
        if waiting
        else None,
        "windows": [window_report(state) for state in windows],
    }


def window_report(state: WindowState) -> dict[str, Any]:
    """Give what a window holds as it stands in manifest and plan."""
    return {
        "window": state.window,
        "limit": state.limit or None,
        "used": state.used,
        "left": state.left,
        "until": utc_text(state.until) if state.until else None,
        "source": state.source,
    }
