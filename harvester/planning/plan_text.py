"""A plan as text for a person, and as JSON for a program."""

from dataclasses import asdict
from datetime import datetime
from math import ceil
from typing import Any

from harvester.bitly.account_limits import api_month
from harvester.bitly.exports import MOST_LINKS
from harvester.budget.forecast import DAYS_PER_MONTH
from harvester.budget.limits import DEFAULTS, option_for
from harvester.clock import next_month, utc_iso, utc_text
from harvester.planning.plan import COMPARED_PLANS, Duration, Plan, PlannedExports, differ
from harvester.progress import WindowState, ages_in_words, duration
from harvester.run.telemetry import window_report
from harvester.worklist.list_count import ListSurvey

_MOST_DOMAINS = 10
_SHOWN_TEXT = 80
_JUST_NOW_SECONDS = 60.0
_YEARS = 120
"""From this number of months on, a time is shown in years."""


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan for a program: counts, and moments in UTC as text."""
    found, ahead = plan.found, plan.forecast
    return {
        "list": {
            "lines": found.lines,
            "links": found.links,
            "duplicates": found.duplicates,
            "invalid": found.invalid,
        },
        "pages": plan.pages.read if plan.pages else None,
        "domains": dict(plan.survey.domains.most_common(_MOST_DOMAINS)),
        "other_domains": _elsewhere(plan.survey),
        "invalid_lines": [each._asdict() for each in plan.survey.examples],
        "done": found.done,
        "facets": plan.facets,
        "periods": plan.periods,
        "given_up": plan.wanted - found.done - found.calls,
        "calls": found.calls,
        "idle": plan.idle._asdict() if plan.idle else None,
        "attempts": plan.attempts,
        "completed_from": plan.completed_from,
        "refresh": _refresh_object(plan),
        "limits": asdict(plan.limits),
        "account": plan.account,
        "windows": [window_report(state) for state in plan.windows],
        "endpoints": {
            facet: [window_report(state) for state in each.windows[:-1]] for facet, each in plan.endpoints.items()
        },
        "plan_limits": [asdict(limit) for limit in plan.plan_limits],
        "plan_limits_age": None if plan.plan_limits_age is None else round(plan.plan_limits_age),
        "plan_option": _option_for_month(plan),
        "now": utc_iso(plan.now),
        "this_month": ahead.this_month,
        "pauses": [utc_iso(pause) for pause in ahead.pauses],
        "ends": utc_iso(ahead.ends) if ahead.ends else None,
        "suggestions": [
            {"option": each.option, "why": each.why, "ends": utc_iso(each.ends)} for each in plan.suggestions
        ],
        "durations": [{**asdict(each), "ends": utc_iso(each.ends) if each.ends else None} for each in plan.durations],
    }


def as_text(plan: Plan) -> str:
    """Format the plan for a person."""
    parts = [_list_lines(plan), _survey_lines(plan.survey), _budget_lines(plan), _end_lines(plan)]
    parts += [_refresh_lines(plan), _table(plan)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _list_lines(plan: Plan) -> list[str]:
    """Return a calculation from the lines of the list to the calls to make."""
    found = plan.found
    beside = (
        ("blank lines, comments and headers", found.lines - found.invalid - found.duplicates - found.links),
        ("not bitlinks", found.invalid),
        ("repeated links", found.duplicates),
    )
    done = (
        ("already done", found.done),
        ("failed in three runs (made again with --retry-failed)", plan.wanted - found.done - found.calls),
    )
    lines = [f"{found.lines:>12,}  {'line' if found.lines == 1 else 'lines'}"]
    lines += [f"{'-':>3}{number:>9,}  {what}" for what, number in beside if number]
    lines.append(f"{'=':>3}{found.links:>9,}  links")
    if plan.wanted > found.links:
        lines += [f"{'×':>3}{plan.facets:>9,}  facets", f"{'×':>3}{plan.periods:>9,}  periods"]
        lines.append(f"{'=':>3}{plan.wanted:>9,}  calls in all")
    lines += [f"{'-':>3}{number:>9,}  {what}" for what, number in done if number]
    lines.append(f"{'=':>3}{found.calls:>9,}  calls to make")
    again = 0
    if plan.pages is not None:
        read, again = plan.pages
        kept = "the run reads them again, which is among its requests" if again else "kept for the run"
        pages = "page" if read == 1 else "pages"
        lines.append(f"{read:>12,}  {pages} of the groups' links, counted in the month too: {kept}")
    if plan.idle is not None and found.calls:
        lines += _idle_lines(plan.idle)
    elif plan.attempts - again > found.calls:
        lines.append(f"{plan.attempts:>12,}  requests, with as many retries as this output has needed so far")
    if plan.completed_from is not None and found.calls:
        lines.append(
            f"{'':>14}a link with {plan.completed_from} metrics or more takes two requests (--no-complete: one)"
        )
    return lines


def _idle_lines(idle: PlannedExports) -> list[str]:
    if not idle.exports:
        return [f"{idle.most:>12,}  requests: exports have stated clicks of all these links"]
    exports = "export" if idle.exports == 1 else "exports"
    lines = [f"{idle.exports:>12,}  {exports} of up to {MOST_LINKS} links: those without clicks need no call"]
    if idle.expected is None:
        text = f"{idle.least:,} to {idle.most:,} requests, by the share of links with clicks; the end is the latest"
        return [*lines, f"{'':>14}{text}"]
    text = "requests, with as many links without clicks as this output has had so far"
    return [*lines, f"{idle.expected:>12,}  {text}"]


def _survey_lines(survey: ListSurvey) -> list[str]:
    """Return the domains of the list, the most frequent first, and the first bad lines."""
    lines = []
    if survey.domains:
        lines.append("lines by domain")
        lines += [f"{count:>12,}  {domain}" for domain, count in survey.domains.most_common(_MOST_DOMAINS)]
    if elsewhere := _elsewhere(survey):
        more = "" if survey.elsewhere else f"{len(survey.domains) - _MOST_DOMAINS:,} "
        lines.append(f"{elsewhere:>12,}  {more}other domains")
    if survey.examples:
        lines += ["", "the first lines that are not bitlinks"] if lines else ["the first lines that are not bitlinks"]
    for bad in survey.examples:
        text = bad.text[:_SHOWN_TEXT].replace("\n", " ")
        lines.append(f'  {bad.file}:{bad.line}: "{text}" ({bad.reason})')
    return lines


def _elsewhere(survey: ListSurvey) -> int:
    """Return the lines of all domains beyond the most frequent ones."""
    return sum(count for _, count in survey.domains.most_common()[_MOST_DOMAINS:]) + survey.elsewhere


_SOURCES = {
    "asked": "as requested",
    "default": "default: Bitly's own limit is not known",
    "bitly": "from Bitly",
    "throttled": "lowered after throttling",
}


def _budget_lines(plan: Plan) -> list[str]:
    if plan.account is None:
        return ["limits: unknown without a token"]
    lines = [f"limits of account {plan.account}"]
    states = [*plan.windows, *(state for each in plan.endpoints.values() for state in each.windows)]
    digits = max((len(f"{state.remaining:,}") for state in states if state.remaining is not None), default=0)
    if differ(plan.endpoints):
        for facet, each in plan.endpoints.items():
            lines += [f"  {facet}", *(f"  {_window_line(state, digits)}" for state in each.windows[:-1])]
        lines.append(_window_line(plan.windows[-1], digits))
    else:
        lines += [_window_line(state, digits) for state in plan.windows]
    seconds = plan.plan_limits_age or 0.0
    age = f", asked {duration(seconds)} ago" if seconds >= _JUST_NOW_SECONDS else ""
    for limit in plan.plan_limits:
        used = f"{limit.count:,} of {limit.limit:,} used"
        lines.append(f"  Bitly reports for {limit.description} ({limit.name}): {used}{age}")
    if option := _option_for_month(plan):
        lines.append(f"  the month above is only the default: use {option}")
    reported, month = api_month(plan.plan_limits), plan.windows[-1]
    if reported and month.source == "asked" and (not month.limit or month.limit > reported.limit):
        lines.append(f"  the month above is more than Bitly reports: use {option_for(reported.limit)}")
    return lines


def _option_for_month(plan: Plan) -> str | None:
    """Return the option that sets the month to what Bitly reports, if nobody named one and the default is another."""
    reported = api_month(plan.plan_limits)
    if reported is None or not plan.windows or plan.windows[-1].source != "default":
        return None
    return option_for(reported.limit) if reported.limit != DEFAULTS.per_month else None


def _window_line(state: WindowState, digits: int) -> str:
    if not state.limit:
        return f"  {state.window:<8}no limit; {state.used:,} used"
    line = f"  {state.window:<8}{state.remaining:>{digits},} of {state.limit:,} left ({_SOURCES[state.source]})"
    if state.until is None:
        return line
    return f"{line}; {'a new month begins' if state.window == 'month' else 'more from'} {utc_text(state.until)}"


def _end_lines(plan: Plan) -> list[str]:
    ahead = plan.forecast
    if not plan.attempts:
        return ["no calls are left to make" if plan.found.links else "no links to fetch"]
    if ahead.ends:
        lines = [f"estimated end: {utc_text(ahead.ends)} (in {duration((ahead.ends - plan.now).total_seconds())})"]
    else:
        lines = ["estimated end: in more than two hundred years"]
    if plan.refused:
        assumed = f"harvester assumes {plan.limits.per_month:,} calls a month, as on Bitly's free plan"
        lines.append(f"  run asks for --plan or --per-month first: {assumed}, and the list needs more")
    elif ahead.pauses:
        months = f"{len(ahead.pauses):,} more month" + "s" * (len(ahead.pauses) > 1)
        enough = f"{ahead.this_month:,} of {plan.attempts:,}"
        lines.append(f"  this month's calls are enough for {enough}; the run then stops with exit code 7")
        again = utc_text(next_month(ahead.pauses[0]))
        lines.append(f"  run the same command again from {again}; it will take {months}")
    if plan.suggestions:
        lines.append("  sooner with")
        lines += [f"    {each.option} ({each.why}): {utc_text(each.ends)}" for each in plan.suggestions]
        lines.append("    a shorter list: each link costs a call, whether it was ever clicked or not")
    return lines


def _refresh_object(plan: Plan) -> dict[str, Any] | None:
    found = plan.refresh
    if found is None:
        return None
    return {
        **asdict(found.ages),
        "days": round(found.days, 2),
        "requests": found.steady.requests,
        "per_month": found.steady.per_month,
        "answered": utc_iso(found.answered) if found.answered else None,
        "oldest_days": round(found.steady.oldest_days, 1),
        "kept": found.steady.kept,
    }


def _refresh_lines(plan: Plan) -> list[str]:
    """Return what --refresh comes to: how much a month covers, and how old answers become."""
    found = plan.refresh
    if found is None:
        return []
    steady, days = found.steady, f"{found.days:g} days"
    lines = [f"refresh: {ages_in_words(found.ages, plan.now)}"]
    if steady.per_month is not None and steady.requests:
        share = min(steady.per_month / steady.requests, 1.0)
        lines.append(f"  a month's {steady.per_month:,} requests cover {share:.1%} of {steady.requests:,}")
    if found.never and found.answered:
        lines.append(
            f"  every link has an answer from {utc_text(found.answered)} "
            f"(in {duration((found.answered - plan.now).total_seconds())})"
        )
    idle = f" ({found.idle_days:g} days of an idle link)" if found.idle_days is not None else ""
    if steady.kept:
        lines.append(f"  {days} can be kept: the oldest answer is then {days} old{idle}, if the command runs every day")
        return lines
    assert steady.per_month is not None
    most = int(steady.per_month * found.days / DAYS_PER_MONTH * plan.found.links / steady.requests)
    needed = ceil(steady.requests * DAYS_PER_MONTH / found.days)
    lines.append(f"  {days} cannot be kept: the oldest answer is then {steady.oldest_days:,.0f} days old")
    lines.append(f"  for {days} it takes {needed:,} requests a month, or a list of at most {most:,} links")
    return lines


def _table(plan: Plan) -> list[str]:
    """Return a table of links and Bitly's plans, with how long each takes; an arrow stands before this list."""
    lines = [
        f"how long it takes by plan and calls a month, at {_rate(plan)}",
        f"{'':>12}" + "".join(f"{name:>12}" for name in COMPARED_PLANS.values()),
        f"{'links':>12}" + "".join(f"{per_month:>12,}" for per_month in COMPARED_PLANS),
    ]
    sizes = dict.fromkeys(each.links for each in plan.durations)
    for links in sizes:
        cells = [_cell(each, plan.now) for each in plan.durations if each.links == links]
        mark = "→" if links == plan.attempts else ""
        lines.append(f"{mark:<2}{links:>10,}" + "".join(f"{cell:>12}" for cell in cells))
    if any(each.months > 1 for each in plan.durations):
        lines.append("  (N months: the command is run again in each of N calendar months)")
    if plan.month_used:
        used = f"{plan.month_used:,} {'call' if plan.month_used == 1 else 'calls'}"
        lines.append(f"  (→ counts the {used} made this month; the other rows have a whole one)")
    return lines


def _rate(plan: Plan) -> str:
    limits = plan.limits
    if len({(each.limits.per_minute, each.limits.per_hour) for each in plan.endpoints.values()}) > 1:
        return "the limits of each facet"
    rates = [f"{limits.per_minute:,} a minute" if limits.per_minute else ""]
    rates.append(f"{limits.per_hour:,} an hour" if limits.per_hour else "")
    found = " and ".join(filter(None, rates))
    return found + (" for each facet" if plan.facets > 1 else "") if found else "no limit a minute or an hour"


def _cell(each: Duration, now: datetime) -> str:
    if each.ends is None:
        return "–"
    if each.months >= _YEARS:
        return f"{each.months // 12:,} years"
    return f"{each.months} months" if each.months > 1 else duration(round((each.ends - now).total_seconds()))
