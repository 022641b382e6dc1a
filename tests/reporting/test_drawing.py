"""Pictures stay in their frames, and say what they were given."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.reporting import figures
from quantkit.reporting.drawing import (
    ABOVE,
    BELOW,
    CHART_HEIGHT,
    CHART_WIDTH,
    HEIGHT,
    WIDTH,
    chart,
    histogram,
)
from quantkit.reporting.page import by_rule, of_slowest, of_total

counts_of = st.lists(st.integers(0, 10**12), min_size=1, max_size=40)
ends_of = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(counts_of, ends_of, st.floats(1e-3, 1e3), ends_of, ends_of)
def test_a_histogram_stays_in_its_frame(
    counts: list[int], first: float, width: float, one: float, other: float
) -> None:
    edges = [first + width * k for k in range(len(counts) + 1)]
    low, high = min(one, other), max(one, other)
    drawn = histogram(edges, counts, low, high)
    numbers = [float(x) for x in re.findall(r"(?<=V)-?[\d.e+]+", drawn.path)]
    assert all(0.0 <= y <= HEIGHT for y in numbers)
    places = [float(x) for x in re.findall(r"(?<=H)-?[\d.e+]+", drawn.path)]
    assert len(places) == len(counts)
    assert places == sorted(places)
    assert all(-0.1 <= x <= WIDTH + 0.1 for x in (*places, drawn.low, drawn.high))
    assert drawn.low <= drawn.high


def test_the_tallest_bar_fills_the_frame_and_an_empty_one_is_flat() -> None:
    assert histogram([0.0, 1.0, 2.0], [9, 0], 0.0, 2.0).path == "M0 84V0H160V84H320V84z"


values_of = st.lists(
    st.one_of(st.none(), st.floats(-60.0, 150.0), st.just(math.inf), st.just(math.nan)),
    min_size=2, max_size=30,
)  # fmt: skip


@given(values_of)
def test_a_chart_stays_in_its_frame_and_has_a_point_for_each_value(
    values: list[float | None],
) -> None:
    known = [v for v in values if v is not None and not math.isnan(v)]
    drawn = chart([f"layer{i}" for i in range(len(values))], [("sqnr", values)], "dB")
    if not known:
        assert drawn is None
        return
    assert drawn is not None
    (line,) = drawn.lines
    assert len(line.points) == len(known)
    for point in line.points:
        assert 0.0 <= point.x <= CHART_WIDTH
        assert ABOVE - 0.1 <= point.y <= CHART_HEIGHT - BELOW + 0.1
    assert 2 <= len(drawn.ticks) <= 9


def test_a_chart_of_one_place_is_no_chart() -> None:
    assert chart(["fc"], [("sqnr", [20.0])], "dB") is None


def test_a_value_that_is_missing_breaks_the_line() -> None:
    drawn = chart(["a", "b", "c"], [("sqnr", [10.0, None, 20.0])], "dB")
    assert drawn is not None
    assert drawn.lines[0].path.count("M") == 2


def test_what_has_no_error_stands_at_the_top_and_says_so() -> None:
    drawn = chart(["a", "b"], [("sqnr", [10.0, math.inf])], "dB")
    assert drawn is not None
    assert drawn.lines[0].points[1].text == "b: exact"
    assert drawn.lines[0].points[1].y < drawn.lines[0].points[0].y


@given(st.floats(allow_nan=False))
def test_figures_sort_as_their_numbers_do(value: float) -> None:
    assert -1e300 <= float(figures.order(value)) <= 1e300
    assert float(figures.order(-math.inf)) <= float(figures.order(value))
    assert float(figures.order(value)) <= float(figures.order(math.inf))


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1e9)), max_size=20))
def test_parts_of_a_whole_sum_to_one(noises: list[float | None]) -> None:
    parts = of_total([{"noise": noise} for noise in noises], "noise")
    assert sum(parts) == pytest.approx(1.0 if any(noises) else 0.0)


def test_bars_are_of_the_slowest_of_the_same_batch() -> None:
    rows = [
        {"device": "cpu", "batch": batch, "median_ms": ms}
        for batch, ms in ((1, 2.0), (1, 4.0), (32, 100.0))
    ]
    assert [of_slowest(row, rows) for row in rows] == [0.5, 1.0, 1.0]


def test_findings_of_one_rule_stand_together() -> None:
    found = [{"severity": "error", "code": c, "n": i} for i, c in enumerate("abab")]
    assert [[f["n"] for f in group] for group in by_rule(found)] == [[0, 2], [1, 3]]
