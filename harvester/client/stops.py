"""client.stops."""

from datetime import UTC, datetime

from harvester.bitly.verdicts import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    TokenRefused,
    Verdict,
)
from harvester.clock import next_month, utc_iso
from harvester.shutdown import Stop, StopReason


def month_spent(verdict: MonthSpent) -> Stop:
    """Give the stop for Bitly's word that the month is spent, with the moment from which it counts anew."""
    message = f"Bitly says that the account's month is spent ({_said(verdict)})"
    return Stop(StopReason.MONTH_SPENT, message, utc_iso(next_month(datetime.now(UTC))))


def for_every_call(verdict: Verdict) -> Stop | None:
    """Give the reason to stop that one such answer is, because every further call would get it too."""
    match verdict:
        case MonthSpent():
            return month_spent(verdict)
        case TokenRefused():
            return Stop(
                StopReason.TOKEN_REFUSED,
                f"Bitly refused the token ({_said(verdict)}). Make a new one under Settings > API and set "
                "BITLY_TOKEN, --token-file or --token-command",
            )
        case PlanRefused():
            return Stop(
                StopReason.PLAN_REFUSED,
                f"the account's plan lacks this facet ({_said(verdict)}). Choose another --facet, or upgrade the plan",
            )
        case ParameterRefused():
            option = "--" + verdict.field.replace("_", "-")
            return Stop(
                StopReason.PARAMETER_REFUSED,
                f"Bitly refused {option} ({_said(verdict)}): every call would fail. Correct it, with a new --out",
            )
        case _:
            return None


def _said(verdict: Verdict) -> str:
    assert not isinstance(verdict, Answer)
    status = "no answer" if verdict.status is None else str(verdict.status)
    return f"{status} {verdict.message}".strip()
