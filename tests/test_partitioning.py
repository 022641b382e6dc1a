"""How a graph is split between engines and another runtime."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.partitioning import Split, Step, Traffic, between, split


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Step], list[str]]:
    """A random graph of steps, each reading some tensors made before, and its outputs."""
    steps: list[Step] = []
    tensors = ["x"]
    for index in range(draw(st.integers(1, 14))):
        read = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        made = [f"t{index}.{k}" for k in range(draw(st.integers(1, 2)))]
        supported = draw(st.booleans())
        steps.append(
            Step(name=f"s{index}", inputs=tuple(read), outputs=tuple(made), supported=supported)
        )
        tensors += made
    outputs = draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, unique=True))
    return steps, outputs


def segment_of(found: Split) -> dict[int, int]:
    return {step: i for i, segment in enumerate(found.segments) for step in segment.steps}


def edges(steps: list[Step]) -> list[tuple[int, int, str]]:
    """Who makes and who reads each tensor."""
    makers = {name: i for i, step in enumerate(steps) for name in step.outputs}
    return [
        (makers[name], reader, name)
        for reader, step in enumerate(steps)
        for name in step.inputs
        if name in makers
    ]


@given(graphs(), st.integers(1, 5))
def test_every_step_is_in_one_segment_and_engines_hold_what_they_can(
    graph: tuple[list[Step], list[str]], smallest: int
) -> None:
    steps, outputs = graph
    found = split(steps, smallest, outputs)
    members = [index for segment in found.segments for index in segment.steps]
    assert sorted(members) == list(range(len(steps)))
    for engine in found.engines:
        assert all(steps[index].supported for index in engine.steps)
        assert len(engine.steps) >= smallest


@given(graphs(), st.integers(1, 5))
def test_segments_can_run_one_after_the_other(
    graph: tuple[list[Step], list[str]], smallest: int
) -> None:
    steps, outputs = graph
    segment = segment_of(split(steps, smallest, outputs))
    assert all(segment[maker] <= segment[reader] for maker, reader, _ in edges(steps))


@given(graphs(), st.integers(1, 5))
def test_what_crosses_borders_is_what_another_segment_reads(
    graph: tuple[list[Step], list[str]], smallest: int
) -> None:
    steps, outputs = graph
    found = split(steps, smallest, outputs)
    segment = segment_of(found)
    crossing = {name for maker, reader, name in edges(steps) if segment[maker] != segment[reader]}
    assert found.crossing == crossing
    made = {name for step in steps for name in step.outputs}
    read = {name for step in steps for name in step.inputs}
    assert {n for s in found.segments for n in s.reads} == crossing | (read - made)
    assert {n for s in found.segments for n in s.writes} == crossing | set(outputs)


@given(graphs())
def test_without_a_least_size_every_supported_step_is_in_an_engine(
    graph: tuple[list[Step], list[str]],
) -> None:
    steps, outputs = graph
    assert split(steps, 1, outputs).inside == sum(step.supported for step in steps)


@given(graphs())
def test_a_graph_that_is_supported_is_one_engine(graph: tuple[list[Step], list[str]]) -> None:
    steps, outputs = graph
    whole = [replace(step, supported=True) for step in steps]
    found = split(whole, 1, outputs)
    assert len(found.segments) == len(found.engines) == 1
    assert not found.crossing


def least(steps: list[Step]) -> int:
    """The least number of engines of all ways to split, by trying them."""
    depth = len(steps) + 1
    ranges = [range(2 if s.supported else 1, 2 * depth, 2) for s in steps]
    best = depth
    for phases in itertools.product(*(r[:3] for r in ranges)):
        if all(phases[m] <= phases[r] for m, r, _ in edges(steps)):
            best = min(best, len({p for p in phases if p % 2 == 0}))
    return best


@settings(max_examples=60)
@given(graphs().filter(lambda graph: len(graph[0]) <= 5))
def test_there_is_no_split_with_fewer_engines(graph: tuple[list[Step], list[str]]) -> None:
    steps, outputs = graph
    assert len(split(steps, 1, outputs).engines) == least(steps)


def test_a_step_that_nothing_waits_for_joins_the_engine_that_reads_it() -> None:
    steps = [
        Step(name="scale", inputs=("y",), outputs=("s",), supported=True),
        Step(name="custom", inputs=("x",), outputs=("a",), supported=False),
        Step(name="mul", inputs=("a", "s"), outputs=("z",), supported=True),
    ]
    found = split(steps, 1, ["z"])
    assert [segment.steps for segment in found.segments] == [(1,), (0, 2)]
    assert found.crossing == {"a"}


@given(graphs(), st.integers(1, 5))
def test_what_is_outside_parts_the_engines_that_paths_lead_to(
    graph: tuple[list[Step], list[str]], smallest: int
) -> None:
    steps, outputs = graph
    found = split(steps, smallest, outputs)
    number = {index: k for k, e in enumerate(found.engines, 1) for index in e.steps}
    reached = {i: {i} for i in range(len(steps))}  # a step, and all that a path leads to
    for maker, reader, _ in sorted(edges(steps), key=lambda edge: -edge[1]):
        reached[maker] |= reached[reader]
    for index, (before, behind) in enumerate(between(steps, found)):
        if index in number:
            assert before == behind == number[index]
            continue
        above = [number[i] for i in number if index in reached[i]]
        below = [number[i] for i in number if i in reached[index]]
        assert before == max(above, default=0)
        assert behind == min(below, default=len(found.engines) + 1)


def test_steps_out_of_order_are_refused() -> None:
    steps = [
        Step(name="late", inputs=("a",), outputs=("b",), supported=True),
        Step(name="early", inputs=("x",), outputs=("a",), supported=True),
    ]
    with pytest.raises(ValueError, match="step late reads a"):
        split(steps)


def test_an_engine_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="1 step or more"):
        split([], 0)


def test_traffic_counts_what_has_no_known_size() -> None:
    assert Traffic.of({"a", "b"}, {"a": 4, "b": None}) == Traffic(tensors=2, bytes=4, unknown=1)
