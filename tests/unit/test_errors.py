"""The exceptions' own texts."""

from harvester.clock import utc_text
from harvester.errors import RunStopped


def test_a_run_that_stopped_names_the_moment_as_people_are_shown_it() -> None:
    until = "2026-12-01T00:00:00Z"
    assert str(RunStopped("month_spent", "it is spent", until)) == f"it is spent (until {utc_text(until)})"
    assert str(RunStopped("outage", "Bitly is out")) == "Bitly is out"
