"""The sums equal those that plain Python makes of the same files, for every facet, format and shape."""

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest

import harvester
from harvester.bitly.facets import FACETS, FieldKind
from harvester.bitly.query import Period, query_for, query_for_period
from harvester.config.placeholders import layout_patterns
from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import DatasetCounts
from harvester.progress import RefreshCounts
from harvester.rows.encode import Format
from harvester.rows.schema import Shape, shortfall_of
from harvester.sums.figures import FacetSums, Sums
from harvester.sums.queries import sums_of
from harvester.sums.sources import sources_at
from tests.support.made_outputs import Row, decoded, make_output, random_rows

FORMS = [*product(Format, Shape)]
REFERENCE = "2026-11-23T06:00:00Z"


def sums_at(out: Path | str, **settings: Any) -> Sums:
    return sums_of(sources_at(str(out), layout_patterns("OUT", str(out))), **settings)


def of_facet(out: Path | str, **settings: Any) -> FacetSums:
    (found,) = sums_at(out, **settings).facets
    return found


class Expected:
    """The sums that plain Python makes of rows. Of a link and a period the newest row counts."""

    def __init__(self, facet: str, rows: Sequence[dict[str, Any]]) -> None:
        newest: dict[Any, tuple[str, str]] = {}
        for row in rows:
            key, moment = (row["bitlink"], row["period_start"]), (row["unit_reference"], row["fetched_at"])
            newest[key] = max(newest.get(key, moment), moment)
        texts = [field.name for field in FACETS[facet].fields if field.kind is FieldKind.TEXT]
        self.calls: dict[Any, dict[str, Any]] = {}
        self.names: Counter[Any] = Counter()
        self.moments: Counter[str] = Counter()
        for row in rows:
            key = (row["bitlink"], row["period_start"])
            if newest[key] != (row["unit_reference"], row["fetched_at"]):
                continue
            for metric in self._metrics(facet, row):
                self.names[tuple(metric[name] for name in texts)] += metric["clicks"] or 0
                self.moments[metric.get("date", "")] += metric["clicks"] or 0
            self.calls[key] = row
        self.links: Counter[str] = Counter()
        for (bitlink, _), row in self.calls.items():
            self.links[bitlink] += row["clicks_listed"]
        shortfalls = [shortfall_of(row) for row in self.calls.values()]
        self.shortfalls = [sum(each[place] for each in shortfalls) for place in range(3)]

    @staticmethod
    def _metrics(facet: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        if "metrics" in row:
            found: list[dict[str, Any]] = row["metrics"]
            return found
        metric = {field.name: row[field.name] for field in FACETS[facet].fields}
        return [] if all(value is None for value in metric.values()) else [metric]


def check(found: FacetSums, facet: str, rows: Sequence[dict[str, Any]]) -> None:
    """Hold all sums of a facet against those of its rows."""
    expected = Expected(facet, rows)
    assert found.rows == len(expected.calls)
    assert (found.links, found.clicks) == (len(expected.links), expected.links.total())
    assert found.without_clicks == sum(clicks == 0 for clicks in expected.links.values())
    assert [found.truncated, found.clipped, found.idle] == expected.shortfalls
    assert {each.bitlink: each.clicks for each in found.busiest} == expected.links
    assert [each.clicks for each in found.busiest] == sorted(expected.links.values(), reverse=True)
    carried: dict[str, Any] = {}
    for (bitlink, _), row in sorted(expected.calls.items(), key=lambda item: item[1]["unit_reference"]):
        carried[bitlink] = row["carried"] or {}
    assert {each.bitlink: each.carried for each in found.busiest} == carried
    if found.breakdown is not None:
        assert {each.names: each.clicks for each in found.breakdown.lines} == expected.names
        assert (found.breakdown.names, found.breakdown.clicks) == (len(expected.names), expected.names.total())
    if FACETS[facet].is_series:
        assert {each.start: each.clicks for each in found.periods} == expected.moments
    assert sum(each.links for each in found.spread) == found.links
    for spread in found.spread:
        own = [
            n for n in expected.links.values() if n == spread.least == 0 or 0 < spread.least <= n < spread.least * 10
        ]
        assert (spread.links, spread.clicks) == (len(own), sum(own))
    busiest = sorted(expected.links.values(), reverse=True)
    for share in found.shares:
        assert (share.links, share.clicks) == (int(found.links * share.share), sum(busiest[: share.links]))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_the_sums_are_those_of_the_rows_of_every_facet(form: tuple[Format, Shape], tmp_path: Path) -> None:
    for facet in FACETS:
        query = query_for(facet, "day", -1, REFERENCE, 8)
        make_output(tmp_path / facet, query, random_rows(facet, seed=len(facet)), form)
    every = sums_at(tmp_path).facets
    assert [found.facet for found in every] == [*FACETS]
    for found in every:
        check(found, found.facet, decoded(tmp_path / found.facet, found.facet, form))
        assert found.breakdown is None or found.breakdown.names > 0
        assert (found.older, len(found.outputs)) == (0, 1)


@pytest.mark.parametrize("form", [(Format.NDJSON_GZ, Shape.NESTED), (Format.PARQUET, Shape.FLAT)])
def test_periods_are_added_up_and_what_bitly_clipped_is_counted(form: tuple[Format, Shape], tmp_path: Path) -> None:
    expected: dict[str, int] = defaultdict(int)
    every = []
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        query = query_for_period("countries", Period("day", date.fromisoformat(day)), 50)
        out = make_output(tmp_path / f"countries/dt={day}", query, random_rows("countries", int(day[-2:])), form)
        rows = decoded(out, "countries", form)
        calls = {row["bitlink"]: row["clicks_listed"] for row in rows}
        expected[f"{day}T00:00:00Z"] += sum(calls.values())
        every += rows
    found = of_facet(tmp_path / "{facet}/dt={dt}")
    check(found, "countries", every)
    assert {each.start: each.clicks for each in found.periods} == expected
    assert (found.unit, found.period_count, len(found.outputs)) == ("day", 3, 3)


@pytest.mark.parametrize("shape", Shape)
def test_of_refreshed_rows_and_of_running_totals_the_newest_counts(shape: Shape, tmp_path: Path) -> None:
    query = query_for("devices", "day", -1, REFERENCE, 50)
    old = random_rows("devices", 1)
    new = [replace(row, moment="2026-11-24T06:00:00Z") for row in random_rows("devices", 2, links=30)]
    form = (Format.NDJSON, shape)
    fresh = RefreshCounts(86400.0, 0, 60, 0, None)
    out = make_output(tmp_path / "refreshed", query, [*old, *new], form, refresh=fresh)
    found = of_facet(out)
    check(found, "devices", decoded(out, "devices", form))
    assert (found.rows, found.older) == (60, 30)
    # The same in two folders, each with a running total.
    make_output(tmp_path / "lake/a", query, old, form)
    make_output(tmp_path / "lake/b", replace(query, unit_reference="2026-11-24T06:00:00Z"), new, form)
    apart = of_facet(tmp_path / "lake")
    assert (apart.rows, apart.older, apart.clicks, apart.breakdown) == (60, 30, found.clicks, found.breakdown)


def test_outputs_of_another_window_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [Row("bit.ly/a", [{"value": "direct", "clicks": 5}])]
    for day in ("2026-11-21", "2026-11-22"):
        make_output(tmp_path / day, query_for_period("referrers", Period("day", date.fromisoformat(day)), 50), rows)
    gone = {"bitlink": "bit.ly/gone", "kind": "refused", "status": 404, "message": "NOT_FOUND"}
    make_output(tmp_path / "all", query_for("referrers", "day", -1, REFERENCE, 50), rows, failures=[gone])
    found = sums_at(tmp_path)
    assert (found.facets[0].clicks, found.without_row) == (10, {})
    assert [text.startswith("all is left out: its window") for text in found.left_out] == [True]


def test_a_growing_file_is_read_up_to_what_is_committed_and_a_torn_line_is_named(tmp_path: Path) -> None:
    rows = random_rows("referrers", 3)
    form = (Format.NDJSON, Shape.NESTED)
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    out = make_output(tmp_path / "results.ndjson", query, rows, form, ended=None, complete=False)
    whole = sums_at(out)
    with out.open("ab") as stream:
        stream.write(b'{"record_id":"torn')
    torn = sums_at(out)
    assert torn.facets == whole.facets
    assert torn.left_out == ("18 bytes at the end of a growing file are not committed yet, and not added up",)
    out.write_bytes(out.read_bytes()[:100])
    cut = sums_at(out)
    assert cut.facets[0].rows == 0
    (damage,) = cut.damaged
    assert (damage.name, damage.rows, damage.read) == (str(out), len(rows), 0)
    assert damage.why.endswith("bytes less than the manifest says: it was truncated")


@pytest.mark.parametrize("form", FORMS)
def test_of_damaged_files_the_rest_is_added_up_and_they_are_named_with_their_rows(
    tmp_path: Path, form: tuple[Format, Shape]
) -> None:
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    lost, kept = random_rows("referrers", 1), random_rows("referrers", 2)
    part = next(make_output(tmp_path / "damaged", query, lost, form).glob("part-*"))
    make_output(tmp_path / "kept", replace(query, unit_reference="2026-11-22T06:00:00Z"), kept, form)
    expected = of_facet(tmp_path / "kept")
    damaged = part.read_bytes()
    for content in (b"no row", damaged[: len(damaged) // 2], damaged[:-9] + b"\x00" * 9):
        part.write_bytes(content)
        found = sums_at(tmp_path)
        (damage,) = found.damaged
        assert (damage.name, damage.output) == (f"damaged/{part.name}", str(tmp_path / "damaged"))
        assert damage.rows == manifests.read(str(tmp_path / "damaged")).content.parts[0].rows
        assert damage.why
        assert "harvester-report-" not in damage.why  # a path of ours
        if damage.read == 0:
            assert replace(found.facets[0], outputs=expected.outputs) == expected


def test_a_part_with_fewer_or_more_rows_than_its_manifest_says_is_damaged(tmp_path: Path) -> None:
    rows, form = random_rows("referrers", 1), (Format.NDJSON, Shape.NESTED)
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), rows, form)
    part = next(out.glob("part-*"))
    lines = part.read_bytes().splitlines(keepends=True)
    for content in (lines[:-2], [*lines, lines[0]]):
        part.write_bytes(b"".join(content))
        (damage,) = sums_at(out).damaged
        assert (damage.rows, damage.read, damage.why) == (len(rows), len(content), f"it has {len(content)}")


def test_a_list_of_failures_that_is_damaged_is_named(tmp_path: Path) -> None:
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), random_rows("referrers", 1))
    (out / "_failures.ndjson").write_bytes(b"{no json\n")
    found = sums_at(out)
    assert found.facets[0].rows > 0
    assert [(each.name, each.rows) for each in found.damaged] == [(f"{out}/_failures.ndjson", None)]


def test_rows_that_are_in_no_part_yet_are_named(tmp_path: Path) -> None:
    counts = DatasetCounts(500, 448, 0, 0, 52, 0, 0)
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), [], dataset=counts)
    assert sums_at(out).left_out == (
        "448 rows are not in the parts yet, and not added up: a run ends by publishing all; repeat a killed one",
    )


def test_outputs_are_called_by_their_paths_below_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for day in ("2026-11-21", "2026-11-22"):
        query = query_for_period("referrers", Period("day", date.fromisoformat(day)), 50)
        make_output(tmp_path / "lake/referrers" / f"dt={day}", query, [])

    def names(out: str) -> list[tuple[str, str]]:
        return [(source.name, source.asked) for source in sources_at(out, layout_patterns("OUT", out)).found]

    days = ["dt=2026-11-21", "dt=2026-11-22"]
    below = [(f"referrers/{day}", f"lake/referrers/{day}") for day in days]
    assert names("lake") == names("lake/") == names("lake/{facet}/dt=*") == names("lake/*/*") == below
    assert names("*/*/dt=*") == [(f"lake/referrers/{day}", f"lake/referrers/{day}") for day in days]
    assert names("lake/referrers") == [(day, f"lake/referrers/{day}") for day in days]
    one = "lake/referrers/dt=2026-11-21"
    assert names(one) == [(one, one)]
    assert names(f"{tmp_path}/lake/*/dt=*") == [
        (f"referrers/{day}", f"{tmp_path}/lake/referrers/{day}") for day in days
    ]


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("nowhere", "nowhere does not exist: give the run's --out"),
        ("empty", "no output was found at empty: neither it nor a folder below it has a _manifest.json; give"),
        ("list.csv", "list.csv is a file, and not an output of a run; give"),
        (
            "rows.ndjson",
            "rows.ndjson is a file, and not an output of a run: .*/rows.ndjson.harvester/_manifest.json",
        ),
        ("out/part-0a0b0c0d0e0f-00000.ndjson.gz", "is a file of an output: give the output's folder, out$"),
        ("out/_failures.ndjson", "is a file of an output: give the output's folder, out$"),
        ("x*", "no output was found at x\\*: nothing that it matches has a _manifest.json; give"),
        ("{facet}/dt=*", "no output was found at .facet./dt=\\*: nothing that it matches"),
    ],
)
def test_an_output_that_is_not_there_is_an_error_that_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("list.csv", "rows.ndjson"):
        (tmp_path / name).write_text("bit.ly/a\n")
    make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), [])
    with pytest.raises(harvester.UsageError, match=expected):
        sums_at(out)


def test_parts_that_a_loader_has_taken_are_named_and_not_added_up(tmp_path: Path) -> None:
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), random_rows("referrers", 1))
    next(out.glob("part-*")).unlink()
    found = sums_at(out)
    assert found.facets[0].rows == 0
    assert found.left_out[0].startswith("1 part is gone, and not added up")


def test_a_list_of_failures_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = {"bitlink": "bit.ly/gone", "kind": "refused", "status": 404, "message": "NOT_FOUND"}
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    out = make_output(tmp_path / "out", query, random_rows("referrers", 1), failures=[gone])
    assert sums_at(out).left_out == ()
    (out / "_failures.ndjson").unlink()
    (note,) = sums_at(out).left_out
    assert note == f"no reasons for 1 link or line without a row: {out}/_failures.ndjson is gone"


def test_a_growing_file_of_which_nothing_is_committed_yet_is_named(tmp_path: Path) -> None:
    out = make_output(tmp_path / "out.ndjson", query_for("referrers", "day", -1, REFERENCE, 50), [])
    with out.open("ab") as stream:
        stream.write(b"a row whose commit is due\n")
    assert sums_at(out).left_out == ("26 bytes at the end of a growing file are not committed yet, and not added up",)


def test_damage_below_a_relative_path_is_named_as_it_would_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    for name in ("a", "b"):
        make_output(Path("lake", name), query, [])
    Path("lake/b/_manifest.json").write_text("{")
    for asked in ("lake", "lake/*"):
        (damage,) = sums_at(asked).damaged
        assert (damage.name, damage.output) == ("b/_manifest.json", "lake/b")
        assert "_manifest.json" not in damage.why


def test_parts_that_the_manifest_does_not_list_yet_are_named_and_not_added_up(tmp_path: Path) -> None:
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), random_rows("referrers", 1))
    before = of_facet(out)
    part = next(out.glob("part-*"))
    shutil.copyfile(part, out / part.name.replace("00000", "00001"))
    shutil.copyfile(part, out / "part-ffffffffffff-00000.ndjson.gz")  # of no run of this output
    found = sums_at(out)
    assert found.facets == (before,)
    assert found.left_out == ("1 part is newer than the manifest, and not added up yet",)


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), [])
    for library in ("duckdb", "jinja2", "vl_convert"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            with pytest.raises(harvester.UsageError, match=r"pip install 'bitly-harvester\[report\]'"):
                harvester.report(out)


@pytest.mark.parametrize(
    "changes", [{"query": {}}, {"query": {"facet": "moods", "unit": "day", "units": 1}}, {"shape": "round"}]
)
def test_a_manifest_whose_rows_are_not_known_is_refused_or_named_as_damaged(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    strange = make_output(tmp_path / "strange", query, [], **changes)
    with pytest.raises(harvester.UsageError, match="its query or its shape is not known"):
        sums_at(strange)
    make_output(tmp_path / "known", query, random_rows("referrers", 1))
    found = sums_at(tmp_path)
    assert len(found.facets) == 1
    (damage,) = found.damaged
    assert (damage.name, damage.output, damage.rows) == ("strange/_manifest.json", str(strange), None)
    assert damage.why == "not a harvester manifest (its query or its shape is not known)"


def test_a_table_of_links_and_a_newer_form_are_no_damage(tmp_path: Path) -> None:
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    make_output(tmp_path / "known", query, random_rows("referrers", 1))
    for name, content in (("links", {"schema_version": 1, "rows": "links"}), ("newer", {"schema_version": 99})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_manifest.json").write_bytes(orjson.dumps(content))
    found = sums_at(tmp_path)
    assert (len(found.facets), found.damaged) == (1, ())
    assert [text.split(":")[0] for text in found.left_out] == ["links/_manifest.json", "newer/_manifest.json"]


def test_too_little_room_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), random_rows("referrers", 1))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(harvester.OutputError, match="nowhere"):
        sums_at(out)


def test_an_output_without_rows_has_sums_of_nothing(tmp_path: Path) -> None:
    for facet in FACETS:
        make_output(tmp_path / facet, query_for(facet, "day", -1, REFERENCE, 50), [])
    for found in sums_at(tmp_path).facets:
        assert (found.rows, found.links, found.clicks, found.busiest, found.spread, found.shares) == (
            0,
            0,
            0,
            (),
            (),
            (),
        )


def test_counts_at_the_border_of_64_bits_and_names_of_any_length_are_added_up(tmp_path: Path) -> None:
    most = 2**63 - 1
    names = ["a" * 10_000, "\x00", "\u202e", "]]>", "\ud7ff", "𝄞"]
    rows = [
        Row(f"bit.ly/{place}-{number}", [{"value": name, "clicks": most}])
        for place, name in enumerate(names)
        for number in range(3)
    ]
    for form in ((Format.NDJSON_ZST, Shape.FLAT), (Format.PARQUET, Shape.NESTED)):
        out = make_output(tmp_path / "-".join(form), query_for("referrers", "day", -1, REFERENCE, 50), rows, form)
        found = of_facet(out)
        check(found, "referrers", decoded(out, "referrers", form))
        assert found.clicks == most * 18


def test_a_row_of_more_than_16_megabytes_is_read(tmp_path: Path) -> None:
    metrics = [{"value": f"{number}" + "x" * 200_000, "clicks": 1} for number in range(100)]
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 500), [Row("bit.ly/a", metrics)])
    assert of_facet(out).clicks == 100


def test_reasons_are_counted_and_the_lines_of_a_table_are_bounded(tmp_path: Path) -> None:
    gone = {"bitlink": "bit.ly/gone", "kind": "refused", "status": 404, "message": "NOT_FOUND"}
    invalid = {"kind": "invalid", "status": None, "message": "x", "file": "links.txt", "line": 7, "text": "nonsense"}
    failures: list[dict[str, Any]] = [gone, gone | {"bitlink": "bit.ly/also"}, invalid]
    rows = [Row(f"bit.ly/{n}", [{"value": f"name {n}", "clicks": n}]) for n in range(30)]
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), rows, failures=failures)
    found = sums_at(out, lines=10)
    assert [(each.kind, each.status, each.number, each.example) for each in found.failures] == [
        ("refused", 404, 2, "bit.ly/also"),
        ("invalid", None, 1, "nonsense"),
    ]
    assert found.without_row == {"refused": 2, "invalid": 1}
    query = query_for("referrers", "day", -1, REFERENCE, 50)
    both = [str(make_output(tmp_path / f"dt={day}", query, [], failures=failures)) for day in (1, 2)]
    assert sums_of(sources_at("dt=*", both)).without_row == {"refused": 4, "invalid": 1}  # of the one list
    breakdown = found.facets[0].breakdown
    assert breakdown is not None
    assert ([each.clicks for each in breakdown.lines], breakdown.names) == ([*range(29, 19, -1)], 30)
    assert len(found.facets[0].busiest) == 10


def test_columns_that_this_version_does_not_know_are_passed_over(tmp_path: Path) -> None:
    form = (Format.NDJSON, Shape.NESTED)
    rows = [Row("bit.ly/a", [{"value": "direct", "clicks": 5}])]
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, REFERENCE, 50), rows, form)
    part = next(out.glob("part-*"))
    row = orjson.loads(part.read_bytes())
    del row["carried"], row["source"]
    part.write_bytes(orjson.dumps(row | {"later": {"a": [1]}}) + b"\n")
    assert of_facet(out).clicks == 5
