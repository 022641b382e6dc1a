"""What it costs to split a model between engines and another runtime, and what would save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto

from quantkit.onnx import flow
from quantkit.partitioning import Segment, Split, Step, Traffic, between, split
from quantkit.targets._rtx_support import Verdicts


@dataclass(frozen=True, kw_only=True)
class SplitCost:
    """What one ``min_block_size`` makes of the file.

    Attributes:
        min_block_size: the least number of operators of an engine.
        engines: how many there are.
        inside: how many operators run in them.
        outside: how many are left to another runtime.
        crossing: the tensors that one part makes and another reads.
    """

    min_block_size: int
    engines: int
    inside: int
    outside: int
    crossing: Traffic


@dataclass(frozen=True, kw_only=True)
class EnginePart:
    """One engine of the split.

    Attributes:
        operators: how many it holds.
        first: its first node.
        last: its last node.
        reads: the tensors that come in.
        writes: the tensors that it puts out.
        verified: the parser took it, asked for it alone; ``None`` where it was not asked.
    """

    operators: int
    first: str
    last: str
    reads: Traffic
    writes: Traffic
    verified: bool | None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How many engines there would be if one thing were put right.

    Attributes:
        cause: the code of the findings that say what.
        operator: of the nodes that they are on.
        nodes: those that would be in an engine then; both of a Q/DQ pair.
        between: the engines that they part, by number: the last before, the first behind. 0:
            there is none before; one more than there are: none behind.
        engines: how many engines there would be.
    """

    cause: str
    operator: str
    nodes: tuple[str, ...]
    between: tuple[tuple[int, int], ...]
    engines: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What splits of one model cost.

    Attributes:
        operators: how many it has, without those that constants alone go into.
        splits: what each ``min_block_size`` makes of it.
        engines: those of the smallest ``min_block_size``.
        gains: what each cause of a refusal costs, the most costly first.
    """

    operators: int
    splits: tuple[SplitCost, ...]
    engines: tuple[EnginePart, ...]
    gains: tuple[Gain, ...]


def costs(
    graph: GraphProto,
    verdicts: Verdicts,
    smallest: Sequence[int],
    sizes: Mapping[str, int | None],
) -> Costs:
    """What it costs to split a graph.

    Args:
        graph: every node with a name of its own, sorted.
        verdicts: which of them no engine can hold.
        smallest: the least numbers of operators of an engine, rising.
        sizes: the bytes of tensors, where they are known.
    """
    steps = flow.flow(graph, verdicts.refused)
    outputs = [value.name for value in graph.output]
    found = [split(steps, size, outputs) for size in smallest]
    return Costs(
        operators=len(steps),
        splits=tuple(_cost(one, len(steps), sizes) for one in found),
        engines=tuple(_engine(e, steps, sizes, verdicts) for e in found[0].engines),
        gains=tuple(_gains(graph, verdicts, found[0], outputs)),
    )


def _engine(
    segment: Segment, steps: Sequence[Step], sizes: Mapping[str, int | None], verdicts: Verdicts
) -> EnginePart:
    names = tuple(steps[index].name for index in segment.steps)
    return EnginePart(
        operators=len(names),
        first=names[0],
        last=names[-1],
        reads=Traffic.of(segment.reads, sizes),
        writes=Traffic.of(segment.writes, sizes),
        verified=verdicts.verified.get(names),
    )


def _cost(found: Split, operators: int, sizes: Mapping[str, int | None]) -> SplitCost:
    return SplitCost(
        min_block_size=found.smallest,
        engines=len(found.engines),
        inside=found.inside,
        outside=operators - found.inside,
        crossing=Traffic.of(found.crossing, sizes),
    )


def _gains(
    graph: GraphProto, verdicts: Verdicts, found: Split, outputs: Sequence[str]
) -> list[Gain]:
    """Of each cause of a refusal: how many engines there would be without it."""
    steps = flow.flow(graph, verdicts.refused)
    places = dict(zip((step.name for step in steps), between(steps, found), strict=True))
    operators = {node.name: node.op_type for node in graph.node}
    causes: dict[tuple[str, str], set[str]] = {}
    for name, operator in operators.items():
        if (finding := verdicts.refused.get(name)) is not None:
            causes.setdefault((finding.code, operator), set()).add(name)
    gains = []
    for (cause, operator), where in causes.items():
        mended = flow.flow(graph, verdicts.refused.keys() - where)
        better = {step.name for step in mended if step.supported}
        nodes = [step.name for step in steps if not step.supported and step.name in better]
        engines = len(split(mended, found.smallest, outputs).engines)
        places_of = sorted({places[name] for name in nodes})
        gains.append(
            Gain(
                cause=cause,
                operator=operator,
                nodes=tuple(nodes),
                between=tuple(places_of),
                engines=engines,
            )
        )
    return sorted(gains, key=lambda gain: (gain.engines, len(gain.nodes)))
