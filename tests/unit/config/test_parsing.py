"""Options to typed values: what they mean, and what is refused before anything is opened."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.facets import FACETS, FacetName
from harvester.bitly.query import UNITS
from harvester.budget.limits import RequestedLimits
from harvester.config.keywords import refuse_unknown
from harvester.config.options import (
    AccessOptions,
    LimitOptions,
    OutputOptions,
    QueryOptions,
    RunOptions,
    UnitName,
)
from harvester.config.parsing import (
    account_of,
    bytes_of,
    check_counts,
    failure_limit_of,
    future_reference,
    periods_of,
    query_of,
    requested_limits,
    seconds_of,
)
from harvester.config.placeholders import filled_path
from harvester.credentials.token_sources import token_source
from harvester.errors import UsageError
from harvester.parameters import by_name, made_of, names_in
from harvester.shutdown import FailureLimit

TOKEN = "0123456789abcdef0123456789abcdef01234567"
RUN = RunOptions(output=OutputOptions(out="out"))


def run_options(**changes: Any) -> RunOptions:
    refuse_unknown(changes, names_in(RunOptions))
    return made_of(RunOptions, {"out": "out", **changes})


# --- durations and sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("6h", 21_600),
        ("2d", 172_800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93_784),
        ("0.5s", 0.5),
        ("1.5h", 5400),
        (" 30S ", 30),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_several(text: str, seconds: float) -> None:
    assert seconds_of("--max-time", text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "0h0m", "-5", "-5s", "s", "5x", "5 s", "five", "1h-30m", "1e3", "inf", "nan", "5ms"]
)
def test_any_other_duration_is_a_usage_error_that_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--max-time"):
        seconds_of("--max-time", text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1048576", 1_048_576),
        ("1b", 1),
        ("64MB", 64_000_000),
        ("64m", 64_000_000),
        ("128MiB", 134_217_728),
        ("128Mi", 134_217_728),
        ("10k", 10_000),
        ("10KiB", 10_240),
        ("2GiB", 2_147_483_648),
        ("1 GB", 1_000_000_000),
        (" 5kb ", 5000),
    ],
)
def test_a_size_is_a_count_of_bytes_with_a_unit(text: str, number: int) -> None:
    assert bytes_of("--part-bytes", text) == number


@pytest.mark.parametrize("text", ["", "0", "0MiB", "-1", "1.5G", "MiB", "1TB", "64 M B", "lots", "1e6"])
def test_any_other_size_is_a_usage_error_that_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--part-bytes"):
        bytes_of("--part-bytes", text)


@given(st.text("0123456789.smhdkibMG -+e%\u0663", max_size=8))
def test_a_text_is_a_duration_a_size_and_a_limit_or_a_usage_error(text: str) -> None:
    readers: list[Callable[[], object]] = [
        lambda: seconds_of("--timeout", text),
        lambda: bytes_of("--part-bytes", text),
        lambda: failure_limit_of("--max-failures", text),
    ]
    for reader in readers:
        try:
            value = reader()
        except UsageError:
            continue
        assert isinstance(value, FailureLimit) or (isinstance(value, int | float) and value > 0)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (None, None),
        ("0", FailureLimit(count=0)),
        ("25", FailureLimit(count=25)),
        ("5%", FailureLimit(share=0.05)),
        ("0.5%", FailureLimit(share=0.005)),
        ("0%", FailureLimit(share=0.0)),
        ("100%", FailureLimit(share=1.0)),
        (" 5% ", FailureLimit(share=0.05)),
    ],
)
def test_a_failure_limit_is_a_count_or_a_share(text: str | None, limit: FailureLimit | None) -> None:
    assert failure_limit_of("--max-failures", text) == limit


@pytest.mark.parametrize("text", ["", "%", "-1", "-1%", "101%", "1.5", "many", "5%%", "nan%", "inf%", "-inf%", "nan"])
def test_any_other_failure_limit_is_a_usage_error_that_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--max-failures"):
        failure_limit_of("--max-failures", text)


def test_limits_are_attempts_in_a_minute_an_hour_and_a_month() -> None:
    assert requested_limits(LimitOptions(per_minute=1, per_hour=2, per_month=0)) == RequestedLimits(1, 2, 0)


def test_limits_that_nobody_named_are_left_open() -> None:
    assert requested_limits(LimitOptions()) == RequestedLimits(None, None, None, 0.0)


@pytest.mark.parametrize("name", ["per_minute", "per_hour", "per_month"])
def test_a_negative_limit_is_a_usage_error_that_names_the_option(name: str) -> None:
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        requested_limits(run_options(**{name: -1}).limits)


@pytest.mark.parametrize(
    ("text", "share"), [("0%", 0.0), ("10%", 0.1), (" 2.5 % ", 0.025), ("99.9%", pytest.approx(0.999))]
)
def test_a_reserve_is_a_share_of_each_limit(text: str, share: float) -> None:
    assert requested_limits(LimitOptions(reserve=text)).reserve == share


@pytest.mark.parametrize("text", ["", "10", "0.1", "100%", "250%", "-1%", "%", "ten%", "nan%", "1e1%"])
def test_any_other_reserve_is_a_usage_error_that_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--reserve"):
        requested_limits(LimitOptions(reserve=text))


@pytest.mark.parametrize("name", [None, "me", "Händler-2", "a" * 100])
def test_an_account_is_a_word(name: str | None) -> None:
    assert account_of(LimitOptions(account=name)) == name


@pytest.mark.parametrize("name", ["", " ", "two words", "a\nb", "\x1b[31m", "\x9b", "a" * 101])
def test_any_other_account_is_a_usage_error_that_names_the_option(name: str) -> None:
    with pytest.raises(UsageError, match="--account"):
        account_of(LimitOptions(account=name))


@pytest.mark.parametrize("name", ["connections", "attempts", "part_rows", "max_calls"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_a_usage_error_that_names_the_option(name: str, value: int) -> None:
    check_counts(RUN)
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        check_counts(run_options(**{name: value}))


# --- the query ------------------------------------------------------------------------------------------------------


def test_the_query_is_pinned_in_utc_and_whole_seconds() -> None:
    query, moment_is_now = query_of(
        QueryOptions(unit_reference="2026-11-23T08:00:00.9+02:00", unit="week", units=3, size=7)
    )
    assert query.as_dict() == {
        "facet": "referrers",
        "unit": "week",
        "units": 3,
        "unit_reference": "2026-11-23T06:00:00Z",
        "size": 7,
        "period_start": None,
        "period_end": None,
    }
    assert not moment_is_now


@pytest.mark.parametrize(
    "text",
    ["2026-11-23T06:00:00Z", "2026-11-23T06:00:00", "2026-11-23 06:00", "2026-11-23T06:00:00+0000", "20261123T060000Z"],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str) -> None:
    assert query_of(QueryOptions(unit_reference=text))[0].unit_reference == "2026-11-23T06:00:00Z"


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "days"),
    [
        ({}, []),
        ({"day": "yesterday"}, ["2026-11-22"]),
        ({"day": " 2026-11-22 "}, ["2026-11-22"]),
        ({"day": "today", "partial": True}, ["2026-11-23"]),
        ({"since": "2026-11-20"}, ["2026-11-20", "2026-11-21", "2026-11-22"]),
        ({"since": "2026-11-10", "until": "2026-11-17", "every": "week"}, ["2026-11-09", "2026-11-16"]),
        ({"since": "2026-10-31", "until": "2026-10-31", "every": "month"}, ["2026-10-01"]),
    ],
    ids=["none", "yesterday", "day", "partial", "since", "weeks", "month"],
)
def test_the_periods_of_the_options(options: dict[str, Any], days: list[str]) -> None:
    assert [str(period.first) for period in periods_of(QueryOptions(**options), NOON)] == days


@pytest.mark.parametrize(
    "options",
    [
        {"day": "today"},
        {"since": "2026-11-02", "every": "month"},
        {"since": "2026-11-16", "every": "week", "until": "today"},
    ],
    ids=["day", "month", "week"],
)
def test_a_period_that_is_not_over_is_refused_with_its_end(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is over at 2026-1[12]-\d\dT00:00:00Z.*--partial"):
        periods_of(QueryOptions(**options), NOON)


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"day": "2026-11-24"}, "the day 2026-11-24 has not begun"),
        ({"since": "2026-11-20", "until": "2026-11-24"}, "the day 2026-11-24 has not begun"),
        ({"since": "2026-11-20", "until": "2026-12-01", "every": "month"}, "the month from 2026-12-01 has not begun"),
        ({"since": "2026-11-24"}, "2026-11-24: is after 2026-11-22, the last day without --until"),
    ],
    ids=["day", "until", "month", "default"],
)
def test_a_period_that_has_not_begun_is_refused_with_partial_too(
    options: dict[str, Any], message: str, partial: bool
) -> None:
    with pytest.raises(UsageError, match=message):
        periods_of(QueryOptions(**options, partial=partial), NOON)


@pytest.mark.parametrize("options", [{}, {"day": "yesterday"}, {"units": 7}], ids=["none", "day", "units"])
def test_a_length_of_periods_is_refused_without_their_first_day(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="week: needs --since"):
        periods_of(QueryOptions(every="week", **options), NOON)


def test_a_period_begins_with_its_first_instant() -> None:
    (period,) = periods_of(QueryOptions(day="2026-11-24", partial=True), datetime(2026, 11, 24, tzinfo=UTC))
    assert str(period.first) == "2026-11-24"


def test_a_period_is_asked_for_by_its_first_instant() -> None:
    query, is_now = query_of(QueryOptions(since="2026-10-05", until="2026-10-05", every="week"))
    assert (query.unit, query.units, query.unit_reference) == ("week", 1, "2026-10-05T00:00:00Z")
    assert (query.period_start, query.period_end, is_now) == ("2026-10-05T00:00:00Z", "2026-10-12T00:00:00Z", False)


def test_a_date_is_its_midnight() -> None:
    assert query_of(QueryOptions(unit_reference="2026-11-23"))[0].unit_reference == "2026-11-23T00:00:00Z"


def test_without_a_moment_it_is_this_one() -> None:
    query, moment_is_now = query_of(QueryOptions())
    assert moment_is_now
    assert abs(datetime.now(UTC) - datetime.fromisoformat(query.unit_reference)) < timedelta(seconds=60)


def test_every_facet_and_unit_of_bitlys_is_taken() -> None:
    for facet in FACETS:
        assert query_of(run_options(facet=facet).query)[0].facet == facet
    for unit in UNITS:
        assert query_of(run_options(unit=unit).query)[0].unit == unit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("facet", "referers"),
        ("facet", ""),
        ("unit", "year"),
        ("unit", "Day"),
        ("units", 0),
        ("units", -2),
        ("size", 0),
        ("size", -1),
        ("unit_reference", "yesterday"),
        ("unit_reference", "2026-13-01"),
        ("unit_reference", "1764000000"),
        ("unit_reference", "0001-01-01T00:00:00+01:00"),
        ("unit_reference", "9999-12-31T23:59:59-01:00"),
        ("unit_reference", " "),
        ("unit_reference", ""),
    ],
)
def test_a_value_that_bitly_does_not_know_is_a_usage_error_that_names_the_option(name: str, value: object) -> None:
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        query_of(run_options(**{name: value}).query)


HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "zone_hours", "warned"),
    [
        (-DAY, 0, False),
        (0, 0, False),
        (45, 0, False),
        (HOUR, 0, True),
        (DAY, 0, True),
        (366 * DAY, 0, True),
        (-HOUR, 9, False),
        (HOUR, -9, True),
    ],
)
def test_a_unit_reference_in_the_future_is_warned_of(seconds: int, zone_hours: int, warned: bool) -> None:
    """The clocks of two machines may differ by a minute."""
    moment = (datetime.now(UTC) + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=zone_hours)))
    query, _ = query_of(QueryOptions(unit_reference=moment.isoformat()))
    warning = future_reference(query)
    assert (warning is not None) == warned
    assert warning is None or f"--unit-reference {query.unit_reference} is in the future" in warning


def test_neither_this_day_nor_the_default_is_in_the_future() -> None:
    today = datetime.now(UTC).date()
    for text, warned in ((None, False), (str(today), False), (str(today + timedelta(days=2)), True)):
        assert bool(future_reference(query_of(QueryOptions(unit_reference=text))[0])) == warned


# --- the token ------------------------------------------------------------------------------------------------------


def silent(message: str) -> None:
    """Nothing to warn of is expected."""
    raise AssertionError(message)


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITLY_TOKEN", raising=False)


def token_file(folder: Path, content: bytes, mode: int = 0o600) -> str:
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def command_that(code: str) -> str:
    """A command line that runs some Python."""
    return f"'{sys.executable}' -c \"{code}\""


def test_the_environment_holds_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", f" {TOKEN}\n")
    assert token_source(AccessOptions(), silent)() == TOKEN


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    read = token_source(AccessOptions(), silent)
    assert read() == TOKEN
    monkeypatch.setenv("BITLY_TOKEN", "another")
    assert read() == "another"


@pytest.mark.parametrize("content", [f"{TOKEN}", f"{TOKEN}\n", f"  {TOKEN}\r\n", f"{TOKEN}\n\n \n"])
def test_a_file_holds_the_token_alone(tmp_path: Path, no_token: None, content: str) -> None:
    path = token_file(tmp_path, content.encode())
    assert token_source(AccessOptions(token_file=path), silent)() == TOKEN


def test_a_file_is_read_at_each_call_so_that_a_token_can_be_rotated(tmp_path: Path, no_token: None) -> None:
    read = token_source(AccessOptions(token_file=token_file(tmp_path, b"old")), silent)
    assert read() == "old"
    token_file(tmp_path, b"new")
    assert read() == "new"


def test_a_command_prints_the_token_alone(no_token: None) -> None:
    command = command_that(f"print('{TOKEN}')")
    assert token_source(AccessOptions(token_command=command), silent)() == TOKEN


def test_a_file_or_a_command_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "from-the-environment")
    path = token_file(tmp_path, b"from-the-file")
    assert token_source(AccessOptions(token_file=path), silent)() == "from-the-file"
    assert token_source(AccessOptions(token_command=command_that("print('printed')")), silent)() == "printed"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o644, True)])
def test_a_token_file_that_others_can_read_is_warned_of_once(
    tmp_path: Path, no_token: None, mode: int, warned: bool
) -> None:
    warnings: list[str] = []
    path = token_file(tmp_path, TOKEN.encode(), mode)
    read = token_source(AccessOptions(token_file=path), warnings.append)
    assert read() == read() == TOKEN
    assert len(warnings) == warned
    assert all("chmod 600" in warning and TOKEN not in warning for warning in warnings)


def test_a_file_and_a_command_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="--token-file and --token-command"):
        token_source(AccessOptions(token_file="a", token_command="b"), silent)


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_without_any_token_the_error_says_where_to_put_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("BITLY_TOKEN", value)
    with pytest.raises(UsageError) as refused:
        token_source(AccessOptions(token_store=str(tmp_path / "none")), silent)()
    for place in ("BITLY_TOKEN", "--token-file", "--token-command", "Settings > API", "harvester login"):
        assert place in str(refused.value)


def test_a_missing_token_file_is_a_usage_error_that_names_it(tmp_path: Path, no_token: None) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match=f"--token-file {path}"):
            token_source(AccessOptions(token_file=str(path)), silent)()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n" + TOKEN.encode(), b"Bearer " + TOKEN.encode(), b"s3cret\xff", b"\xef\xbb\xbfs3cret", b"s3cret\x00"],
)
def test_a_file_without_a_token_is_an_error_that_does_not_repeat_it(
    tmp_path: Path, no_token: None, content: bytes
) -> None:
    path = token_file(tmp_path, content)
    with pytest.raises(UsageError, match="--token-file") as refused:
        token_source(AccessOptions(token_file=path), silent)()
    assert TOKEN not in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "command",
    [
        "/no/such/command",
        "'unbalanced",
        " ",
        command_that("pass"),
        command_that("print('s3cret token')"),
        command_that("print('s3cret'); raise SystemExit(3)"),
        command_that("import sys; sys.stdout.buffer.write(b's3cret\\xff')"),
    ],
)
def test_a_command_that_gives_no_token_is_an_error_that_does_not_repeat_what_it_printed(
    no_token: None, command: str
) -> None:
    with pytest.raises(UsageError, match="--token-command") as refused:
        token_source(AccessOptions(token_command=command), silent)()
    assert "s3cret" not in str(refused.value)


def test_a_token_in_the_environment_that_is_none_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "s3cret with spaces")
    with pytest.raises(UsageError, match="BITLY_TOKEN") as refused:
        token_source(AccessOptions(), silent)()
    assert "s3cret" not in str(refused.value)


def test_the_choices_of_facet_and_unit_are_those_that_bitly_knows() -> None:
    assert set(get_args(FacetName)) == set(FACETS)
    assert set(get_args(UnitName)) == set(UNITS)


def test_options_have_no_place_for_a_token() -> None:
    assert not {"token", "access_token"} & set(names_in(RunOptions))


# --- by name --------------------------------------------------------------------------------------------------------


def test_options_are_made_from_their_names() -> None:
    made = run_options(per_minute=7, facet="countries")
    assert made.limits.per_minute == 7
    assert made.query.facet == ("countries",)
    assert made.access == AccessOptions()


def test_options_by_name_are_those_that_they_were_made_of() -> None:
    assert made_of(RunOptions, by_name(RUN)) == RUN
    assert list(by_name(RUN)) == names_in(RunOptions)


def test_a_name_that_is_no_option_is_refused_with_the_nearest() -> None:
    known = names_in(RunOptions)
    refuse_unknown(known, known)
    with pytest.raises(UsageError, match="unknown option per_minut; did you mean per_minute"):
        refuse_unknown(["per_minut"], known)
    with pytest.raises(UsageError, match="the options are out, work_dir"):
        refuse_unknown(["zzz"], known)


# --- plan and home ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "per_month"),
    [
        ({}, 1000),
        ({"plan": "free"}, 1000),
        ({"plan": "core"}, 5000),
        ({"plan": "growth"}, 25_000),
        ({"plan": "premium"}, 50_000),
        ({"plan": "premium", "per_month": 30_000}, 30_000),
        ({"plan": "premium", "per_month": 0}, 0),
    ],
)
def test_the_plan_sets_the_month_unless_a_number_is_named(changes: dict[str, Any], per_month: int) -> None:
    assert requested_limits(run_options(**changes).limits).limits().per_month == per_month


def test_an_unknown_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="--plan gold: must be one of free, core, growth, premium"):
        requested_limits(run_options(plan="gold").limits)


@pytest.mark.parametrize("option", ["out", "work_dir", "metrics_file", "state_dir", "token_file", "token_store"])
def test_the_home_folder_is_expanded_in_every_path(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert by_name(run_options(**{option: "~/x"}))[option] == "/home/me/x"
    assert by_name(run_options(**{option: "./~/x"}))[option] == "./~/x"
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} ~nobody-here/x: this home folder is not known"):
        run_options(**{option: "~nobody-here/x"})


def test_the_home_folder_is_expanded_in_the_path_of_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert filled_path("OUT", "~/{facet}", "countries", None) == "/home/me/countries"
