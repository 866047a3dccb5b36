"""Hours to weeks of harvesting in virtual time: limits, outages and months from end to end.

The long forms are marked nightly; each has a short form with the same assertions.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from harvester.budget.limits import RequestedLimits
from harvester.shutdown import StopReason
from tests.support.simulated_bitly import World
from tests.support.simulated_weeks import Weeks
from tests.support.virtual_time import THREADED, at_once


def sizes(short: int, nightly: int) -> pytest.MarkDecorator:
    """Run a simulation with a list that is just long enough for its assertions, and nightly with a longer one."""
    return pytest.mark.parametrize("links", [short, pytest.param(nightly, marks=pytest.mark.nightly)])


def number(bitlink: str) -> int:
    return int(bitlink.removeprefix("bit.ly/"))


@pytest.fixture(autouse=True)
def threadless(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in THREADED:
        monkeypatch.setattr(module, "in_daemon", at_once)


@sizes(3_000, 12_000)
def test_an_hours_limit_is_used_up_and_never_passed(quick_path: Path, links: int) -> None:
    weeks = Weeks(quick_path, World(), RequestedLimits(per_month=0), links)
    assert weeks.run().complete
    used = weeks.bitly.utilisation(1000, 3600.0)
    weeks.report("an hour's limit", used)
    assert used >= 0.995
    assert weeks.bitly.throttled == weeks.repeated == 0


@pytest.mark.parametrize(
    "places", [(0, 1, 2), (40, 41, 42), (297, 298, 299), (40, 140, 240), tuple(range(292, 300))], ids=str
)
def test_links_that_are_throttled_whatever_passes_hold_the_others_up_for_a_minute_at_most(
    quick_path: Path, places: tuple[int, ...]
) -> None:
    """Each is charged its attempts, and none of them teaches a limit."""
    world = World(throttled=frozenset(f"bit.ly/{place}" for place in places), errors=0.0, tells=False)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), 300)
    outcome = weeks.run()
    weeks.report(f"{len(places)} throttled links", None)
    assert (outcome.status.rows, outcome.status.failed, weeks.stops) == (300 - len(places), len(places), [])
    assert weeks.bitly.throttled <= 7 * len(places)
    assert weeks.bitly.seconds < 181.0 + 60.0 * 2  # the pace alone takes 181 s
    assert outcome.status.attempts.total < 300 + 9 * len(places)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [(100, 20), (1000, 4), *(pytest.param(*size, marks=pytest.mark.nightly) for size in ((100, 60), (1000, 12)))],
)
def test_a_minutes_limit_is_used_up_and_never_passed(quick_path: Path, limit: int, minutes: int) -> None:
    world, wanted = World(per_minute=limit, per_hour=0), RequestedLimits(per_minute=limit, per_hour=0, per_month=0)
    weeks = Weeks(quick_path, world, wanted, minutes * limit, promised=(limit, 0))
    assert weeks.run().complete
    used = weeks.bitly.utilisation(limit, 60.0)
    weeks.report(f"{limit} a minute", used)
    assert used >= 0.985
    assert weeks.bitly.throttled == weeks.repeated == 0


@pytest.mark.parametrize("links", [20, 100])
def test_a_list_that_fits_into_the_free_window_is_not_paced(quick_path: Path, links: int) -> None:
    weeks = Weeks(quick_path, World(errors=0.0), RequestedLimits(per_month=0), links)
    assert weeks.run().complete
    weeks.report("a short list")
    assert weeks.bitly.seconds < 10


@sizes(2_000, 10_000)
@pytest.mark.parametrize(("per_minute", "per_hour", "seed"), [(10, 0, 1), (50, 0, 2), (0, 600, 3)])
def test_unknown_limits_are_found_at_the_price_of_one_call_in_a_hundred(
    quick_path: Path, per_minute: int, per_hour: int, seed: int, links: int
) -> None:
    world = World(per_minute=per_minute, per_hour=per_hour, tells=False)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), links, seed=seed)
    assert weeks.run().complete
    allowed = max(per_minute * 60, per_hour) / 3600 * weeks.bitly.seconds
    weeks.report(f"unknown {per_minute}/min {per_hour}/h", weeks.bitly.answered.total() / allowed)
    assert weeks.bitly.throttled <= 0.01 * weeks.bitly.attempts
    assert weeks.repeated <= links // 5000  # known-good links, of which one is asked when a link fails five times


def test_ten_minutes_of_outage_cost_no_link_and_few_calls(quick_path: Path) -> None:
    world = World(per_hour=0, outages=[(1500.0, 2100.0)], errors=0.0)
    weeks = Weeks(quick_path, world, RequestedLimits(per_hour=0, per_month=0), 3_200, promised=(100, 0))
    outcome = weeks.run()
    weeks.report("ten minutes out")
    assert outcome.complete
    assert outcome.status.failed == 0
    assert weeks.bitly.attempts_while_out < 60
    assert weeks.stops == []
    assert weeks.repeated <= 1  # the probe


@sizes(100, 200)
@pytest.mark.parametrize(
    "per_hour", [12, 20, *(pytest.param(per_hour, marks=pytest.mark.nightly) for per_hour in (14, 16))]
)
def test_an_outage_under_a_low_hourly_limit_costs_no_link(quick_path: Path, per_hour: int, links: int) -> None:
    """The probe has to wait for the hourly window, and is answered when the outage is long over."""
    outages = [(hour * 3600.0, hour * 3600.0 + 1800.0) for hour in range(1, 40, 3)]
    world = World(per_hour=per_hour, outages=outages, errors=0.0)
    weeks = Weeks(quick_path, world, RequestedLimits(per_hour=per_hour, per_month=0), links, promised=(100, per_hour))
    outcome = weeks.run()
    weeks.report(f"out, with {per_hour}/h")
    assert outcome.status.failed == 0
    assert weeks.bitly.failed


def test_an_outage_past_the_limit_stops_and_the_next_run_carries_on(quick_path: Path) -> None:
    world = World(per_hour=0, outages=[(600.0, 600.0 + 3600.0)], errors=0.0)
    weeks = Weeks(quick_path, world, RequestedLimits(per_hour=0, per_month=0), 3_000, promised=(100, 0))
    outcome = weeks.run()
    weeks.report("an hour out")
    assert weeks.stops == [StopReason.OUTAGE]
    assert outcome.complete
    assert outcome.status.failed == 0


@pytest.mark.parametrize("poisoned", [3, 100])
def test_links_that_always_fail_at_the_end_of_a_list_are_not_taken_for_an_outage(
    quick_path: Path, poisoned: int
) -> None:
    world = World(errors=0.0, poisoned=lambda bitlink, _: number(bitlink) >= 500)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), 500 + poisoned)
    outcome = weeks.run()
    weeks.report(f"{poisoned} poisoned at the end")
    assert weeks.stops == []
    assert outcome.status.failed == poisoned
    assert outcome.status.rows == 500
    assert weeks.repeated <= 2 + poisoned // 8
    assert weeks.bitly.failed <= 6 * poisoned


def test_a_server_that_goes_down_before_the_last_links_costs_none_of_them(quick_path: Path) -> None:
    world = World(errors=0.0, per_minute=0, per_hour=0, outages=[(8.0, 308.0)])
    weeks = Weeks(quick_path, world, RequestedLimits(per_minute=0, per_hour=0, per_month=0), 340, promised=(0, 0))
    outcome = weeks.run()
    weeks.report("down before the end")
    assert weeks.bitly.attempts_while_out
    assert outcome.complete
    assert outcome.status.failed == 0


@pytest.mark.parametrize(
    "share", [0.95, 0.6, *(pytest.param(share, marks=pytest.mark.nightly) for share in (0.9, 0.8))]
)
def test_ten_minutes_of_mostly_failing_answers_cost_almost_no_link(quick_path: Path, share: float) -> None:
    world = World(per_hour=0, errors=0.0, brown=[(300.0, 900.0, share)])
    weeks = Weeks(quick_path, world, RequestedLimits(per_hour=0, per_month=0), 2_000, promised=(100, 0))
    outcome = weeks.run()
    weeks.report(f"{share:.0%} fail")
    assert outcome.status.failed <= 20
    assert weeks.stops == []


def test_an_outage_from_the_start_costs_no_link_of_a_short_list(quick_path: Path) -> None:
    weeks = Weeks(quick_path, World(errors=0.0, outages=[(0.0, 600.0)]), RequestedLimits(), 15)
    outcome = weeks.run()
    weeks.report("out from the beginning")
    assert outcome.complete
    assert weeks.stops == []
    assert weeks.bitly.attempts_while_out < 120


def test_known_good_links_that_begin_to_fail_do_not_block_the_end_of_a_list(quick_path: Path) -> None:
    world = World(errors=0.0, poisoned=lambda bitlink, at: number(bitlink) >= 200 or (at > 30 and number(bitlink) < 3))
    weeks = Weeks(quick_path, world, RequestedLimits(per_minute=0, per_hour=0, per_month=0), 205, promised=(0, 0))
    weeks.world.per_minute = weeks.world.per_hour = 0
    weeks.run()
    weeks.store.calls = {key: known for key, known in weeks.store.calls.items() if number(key.decode()) < 200}
    outcome = weeks.run()  # its first known good links are the first of the list
    weeks.report("known good links that fail")
    assert weeks.stops == []
    assert outcome.status.failed == 5


def test_a_run_throttled_from_the_start_soon_recovers_the_full_rate(quick_path: Path) -> None:
    world = World(errors=0.0, tells=False, spent=[(0.0, 1200.0)])
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), 3_000)
    assert weeks.run().complete
    weeks.report("throttled at first")
    assert weeks.bitly.seconds < 5 * 3600
    assert weeks.bitly.throttled < 40


def test_a_retry_after_that_is_always_too_short_is_not_followed_forever(quick_path: Path) -> None:
    world = World(errors=0.0, spent=[(0.0, 7000.0)], hint="1")
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), 100)
    assert weeks.run().complete
    weeks.report("Retry-After too short")
    assert weeks.bitly.throttled < 30


def test_an_impossible_usage_reported_by_bitly_delays_nothing(quick_path: Path) -> None:
    world = World(errors=0.0, count=lambda count: count + 5000)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), 300)
    assert weeks.run().complete
    weeks.report("impossible usage")
    assert weeks.bitly.seconds < 600


def test_two_hours_of_nothing_but_throttling_end_the_run(quick_path: Path) -> None:
    weeks = Weeks(quick_path, World(spent=[(0.0, 10_000.0)]), RequestedLimits(), 50)
    outcome = weeks.run()
    weeks.report("throttled for hours")
    assert weeks.stops[0] is StopReason.THROTTLED
    assert outcome.complete
    assert weeks.bitly.throttled < 30


def busy_hours(seconds: float) -> bool:
    """Return whether other clients are busy: from the eighth to the tenth hour of each day, and every seventh day."""
    day, hour = divmod(seconds / 3600, 24)
    return 8 <= hour < 10 or day % 7 == 6


def shared_world() -> World:
    """Return a Bitly with 1,000 calls an hour shared with other clients.

    It is down for ten minutes every third day, and once for longer than a run waits.
    """
    outages = [(day * 86400.0 + 5000.0, day * 86400.0 + 5600.0) for day in range(0, 60, 3)]
    return World(others_per_hour=150, others_busy=busy_hours, outages=[*outages, (200_000.0, 204_000.0)])


@sizes(4_000, 30_000)
@pytest.mark.parametrize(("seed", "counts_throttled"), [(2, False), (4, True)])
def test_throttling_that_other_clients_cause_does_not_lower_what_we_ask_for(
    quick_path: Path, seed: int, counts_throttled: bool, links: int
) -> None:
    busy = World(others_per_hour=300, others_busy=lambda seconds: seconds // 3600 % 3 == 0)
    world = replace(busy, counts_throttled=counts_throttled)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), links, seed=seed)
    assert weeks.run().complete
    used = weeks.shared_utilisation()
    weeks.report("others again and again", used)
    assert used >= 0.99
    assert weeks.bitly.throttled <= 0.005 * weeks.bitly.attempts


# In the short form there are no others: they are not busy before the eighth hour.
@pytest.mark.parametrize(
    ("others_per_hour", "links"),
    [(0, 4_000), *(pytest.param(others, 10_000, marks=pytest.mark.nightly) for others in (0, 150))],
)
def test_the_true_limit_is_found_although_bitly_reports_a_higher_one(
    quick_path: Path, others_per_hour: int, links: int
) -> None:
    world = World(per_hour=600, told_per_hour=1000, others_per_hour=others_per_hour, others_busy=busy_hours)
    weeks = Weeks(quick_path, world, RequestedLimits(per_month=0), links)
    assert weeks.run().complete
    used = weeks.shared_utilisation()
    weeks.report("reported wrongly", used)
    assert used >= 0.9
    assert weeks.bitly.throttled <= 0.01 * weeks.bitly.attempts


@pytest.mark.parametrize(
    ("links", "per_month"),
    [(8_000, 6_000), pytest.param(250_000, 150_000, marks=pytest.mark.nightly)],
)
def test_six_weeks(quick_path: Path, links: int, per_month: int) -> None:
    """Harvest 1,000 calls an hour, shared with other clients at times, through outages and the ends of months.

    benchmarks/quota.py runs all six weeks: a million links.
    """
    weeks = Weeks(quick_path, shared_world(), RequestedLimits(per_month=per_month), links, connections=2)
    outcome = weeks.run()
    bitly = weeks.bitly
    used = weeks.shared_utilisation()
    weeks.report("six weeks", used)
    assert used >= 0.98
    assert outcome.status.failed == 0
    assert weeks.store.totals.rows == links
    assert set(bitly.by_month.values()) <= set(range(per_month + 1))
    assert StopReason.MONTH_SPENT in weeks.stops
    assert set(weeks.stops) <= {StopReason.MONTH_SPENT, StopReason.OUTAGE}
    assert bitly.throttled <= 0.01 * bitly.attempts
    assert weeks.repeated <= 30
