"""How a graph that an engine cannot take whole is split between engines and another runtime.

Pure functions over names: nothing of ONNX, PyTorch or an SDK. An engine must not wait for itself:
if a tensor left it and another came back in, through what runs outside, neither could start. So
steps are put into phases that only ever go up along an edge, engines in the even ones and all else
in the odd ones, and each phase is one segment. There is no way to split with fewer engines: each
phase of one lies on a path that needs as many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator.

    Attributes:
        name: its own.
        inputs: the tensors that it reads, without constants: those are copied to where they are
            needed, and cross no border.
        outputs: the tensors that it makes.
        supported: an engine can hold it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    supported: bool


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Steps that run as one.

    Attributes:
        steps: their indices, in order.
        engine: it is an engine, and not left to another runtime.
        reads: the tensors that come in, made by others or given to the model.
        writes: the tensors that others read, or that the model puts out.
    """

    steps: tuple[int, ...]
    engine: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Tensors that cross borders.

    Attributes:
        tensors: how many.
        bytes: of those whose size is known.
        unknown: how many have no known size.
    """

    tensors: int
    bytes: int
    unknown: int

    @classmethod
    def of(cls, names: Collection[str], sizes: Mapping[str, int | None]) -> Traffic:
        """The traffic of some tensors.

        Example:
            >>> Traffic.of(["a", "b"], {"a": 8})
            Traffic(tensors=2, bytes=8, unknown=1)
        """
        known = [size for name in names if (size := sizes.get(name)) is not None]
        return cls(tensors=len(names), bytes=sum(known), unknown=len(names) - len(known))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Segments in an order in which they can run.

    Attributes:
        segments: engines, and what stands between them.
        smallest: the least number of steps that an engine was to have.
    """

    segments: tuple[Segment, ...]
    smallest: int

    @property
    def engines(self) -> tuple[Segment, ...]:
        """The segments that are engines."""
        return tuple(segment for segment in self.segments if segment.engine)

    @property
    def inside(self) -> int:
        """How many steps run in engines."""
        return sum(len(segment.steps) for segment in self.engines)

    @cached_property
    def crossing(self) -> frozenset[str]:
        """The tensors that one segment makes and another reads: each is copied or waited for."""
        made = {name for segment in self.segments for name in segment.writes}
        return frozenset(n for segment in self.segments for n in segment.reads if n in made)


def split(steps: Sequence[Step], smallest: int = 1, outputs: Collection[str] = ()) -> Split:
    """Split a graph into engines and what is left to another runtime.

    Engines of fewer than ``smallest`` steps are left out, as ``min_block_size`` of Torch-TensorRT
    (https://docs.pytorch.org/TensorRT) and ``trt_min_subgraph_size`` of ONNX Runtime have it.

    Args:
        steps: in an order in which they can run.
        smallest: 1 or more.
        outputs: the tensors that the model puts out.

    Raises:
        ValueError: ``smallest`` is less than 1, or a step reads what only a later one makes.

    Example:
        >>> chain = [
        ...     Step(name="conv", inputs=("x",), outputs=("a",), supported=True),
        ...     Step(name="custom", inputs=("a",), outputs=("b",), supported=False),
        ...     Step(name="relu", inputs=("b",), outputs=("y",), supported=True),
        ... ]
        >>> [segment.steps for segment in split(chain, outputs=["y"]).engines]
        [(0,), (2,)]
        >>> sorted(split(chain, outputs=["y"]).crossing)
        ['a', 'b']
    """
    if smallest < 1:
        raise ValueError(f"an engine has 1 step or more, got {smallest}")
    _require_order(steps)
    kept = list(steps)
    while True:
        groups = _groups(_phases(kept))
        small = {
            index
            for phase, members in groups.items()
            if phase % 2 == 0 and len(members) < smallest
            for index in members
        }
        if not small:
            break
        kept = [replace(s, supported=False) if i in small else s for i, s in enumerate(kept)]
    segments = tuple(_segment(steps, groups[p], p % 2 == 0, outputs) for p in sorted(groups))
    return Split(segments=segments, smallest=smallest)


def between(steps: Sequence[Step], found: Split) -> list[tuple[int, int]]:
    """Of each step: the last engine on a path to it, and the first on a path from it.

    Engines are counted from 1, in the order of ``found.engines``; 0 where none is before, and one
    more than there are where none is behind. A step that is outside parts the two; of one in an
    engine both are its own.

    Example:
        >>> chain = [
        ...     Step(name="conv", inputs=("x",), outputs=("a",), supported=True),
        ...     Step(name="custom", inputs=("a",), outputs=("b",), supported=False),
        ...     Step(name="relu", inputs=("b",), outputs=("y",), supported=True),
        ... ]
        >>> between(chain, split(chain))
        [(1, 1), (1, 2), (2, 2)]
    """
    number = {index: k for k, e in enumerate(found.engines, 1) for index in e.steps}
    makers = {name: index for index, step in enumerate(steps) for name in step.outputs}
    before, behind = [0] * len(steps), [len(found.engines) + 1] * len(steps)
    for index, step in enumerate(steps):
        near = [before[makers[name]] for name in step.inputs if name in makers]
        before[index] = number.get(index, max(near, default=0))
    for index in reversed(range(len(steps))):
        behind[index] = number.get(index, behind[index])
        for name in steps[index].inputs:
            if name in makers:
                maker = makers[name]
                behind[maker] = min(behind[maker], behind[index])
    return list(zip(before, behind, strict=True))


def _require_order(steps: Sequence[Step]) -> None:
    makers = {name: index for index, step in enumerate(steps) for name in step.outputs}
    for index, step in enumerate(steps):
        late = next((name for name in step.inputs if makers.get(name, -1) >= index), None)
        if late is not None:
            raise ValueError(f"step {step.name} reads {late}, which is made later; sort the steps")


def _phases(steps: Sequence[Step]) -> list[int]:
    """Of each step: twice the engines that some path to it needs, or one more outside of them."""
    phases: list[int] = []
    made: dict[str, int] = {}
    for index, step in enumerate(steps):
        # What needs no engine before it is in the first, not in one of its own before that.
        phase = 2 if step.supported else 1
        for name in step.inputs:
            if (maker := made.get(name)) is not None:
                other = steps[maker].supported != step.supported
                phase = max(phase, phases[maker] + other)
        phases.append(phase)
        made.update(dict.fromkeys(step.outputs, index))
    return phases


def _groups(phases: Iterable[int]) -> dict[int, tuple[int, ...]]:
    groups: dict[int, list[int]] = {}
    for index, phase in enumerate(phases):
        groups.setdefault(phase, []).append(index)
    return {phase: tuple(members) for phase, members in groups.items()}


def _segment(
    steps: Sequence[Step], members: tuple[int, ...], engine: bool, outputs: Collection[str]
) -> Segment:
    own = {name for index in members for name in steps[index].outputs}
    inside = set(members)
    wanted = {*outputs, *_read_elsewhere(steps, inside)}
    reads = dict.fromkeys(n for i in members for n in steps[i].inputs if n not in own)
    writes = dict.fromkeys(n for i in members for n in steps[i].outputs if n in wanted)
    return Segment(steps=members, engine=engine, reads=tuple(reads), writes=tuple(writes))


def _read_elsewhere(steps: Sequence[Step], inside: Collection[int]) -> Iterator[str]:
    for index, step in enumerate(steps):
        if index not in inside:
            yield from step.inputs
