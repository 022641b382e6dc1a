"""``inspect``: what of an ONNX file TensorRT would take, why not the rest, and what a split costs.

``check`` asks whether a file runs as it says; this asks, of any file, float or quantized, what
keeps it from being one engine. Nothing is built and no GPU is needed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from onnx import ModelProto, ValueInfoProto

from quantkit.errors import DataError
from quantkit.interfaces import Finding, Severity
from quantkit.onnx import flow
from quantkit.onnx.lint import lint
from quantkit.partitioning import Segment, Split, Step, Traffic, split, with_supported
from quantkit.targets import _rtx_support
from quantkit.targets._engine_source import Source, read_source
from quantkit.targets._shapes import default_profile

#: The sizes of blocks that are compared where none is asked for; 5 is Torch-TensorRT's default.
BLOCK_SIZES = (1, 5, 10)
#: Whose rules and parser are asked. TensorRT 10 and 11 have the same parser.
TARGETS = ("tensorrt_rtx", "tensorrt")
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


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
        nodes: those that are refused because of it; both of a Q/DQ pair.
        engines: how many engines there would be.
    """

    cause: str
    nodes: tuple[str, ...]
    engines: int


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """What ``inspect`` found out about a file.

    Attributes:
        model: the file.
        target: whose rules and parser were asked.
        findings: what is refused or runs other than the file says, the worst first.
        operators: how many the file has, without those that constants alone go into.
        splits: what each ``min_block_size`` makes of it.
        engines: those of the smallest ``min_block_size``.
        gains: what each cause of a refusal costs, the most costly first.
        sizes: the sizes that dynamic inputs were given to count bytes.
    """

    model: str
    target: str
    findings: tuple[Finding, ...]
    operators: int
    splits: tuple[SplitCost, ...]
    engines: tuple[EnginePart, ...]
    gains: tuple[Gain, ...]
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def ok(self) -> bool:
        """Whether one engine takes all of it."""
        whole = len(self.engines) == 1 and self.engines[0].operators == self.operators
        return whole and not any(f.severity is Severity.ERROR for f in self.findings)

    def to_json(self) -> str:
        """Every field, and ``ok``."""
        return json.dumps({"ok": self.ok, **asdict(self)})


def inspect(
    model: Path | str,
    target: str = "tensorrt_rtx",
    *,
    min_block_sizes: Sequence[int] = BLOCK_SIZES,
    shapes: Mapping[str, Sequence[int]] | None = None,
    timeout_s: float = 600.0,
    progress: bool = True,
) -> SupportReport:
    """Tell what of an ONNX file TensorRT would take, why not the rest, and what a split costs.

    Args:
        model: the file.
        target: ``tensorrt_rtx``, or ``tensorrt``, whose parser is the same.
        min_block_sizes: the least numbers of operators of an engine to compare.
        shapes: of inputs with dynamic dimensions, the sizes to count bytes for; by default those
            that an engine is built for best.
        timeout_s: seconds after which the parser is stopped.
        progress: show a progress bar, on a terminal.

    Raises:
        ModelFileError: there is no such file, or it is no ONNX file.
        DataError: the target, a size of blocks or a shape is none that there can be.
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    path = Path(model)
    sizes_of = sorted(set(min_block_sizes))
    if target not in TARGETS:
        raise DataError(f"no parser to ask for target {target!r}; there are: {', '.join(TARGETS)}")
    if not sizes_of or sizes_of[0] < 1:
        raise DataError(f"min_block_size must be 1 or more, got {list(min_block_sizes)}")
    source = read_source(path)
    if isinstance(source, Finding):
        return _unread(path, target, source)
    proto = _named(source)
    chosen = _input_sizes(proto, shapes or {})
    findings = _findings(source, proto, timeout_s, progress)
    refused = {f.where for f in findings if f.severity is Severity.ERROR}
    typed = flow.typed(flow.resized(proto, chosen).graph)
    steps = flow.flow(proto.graph, refused)
    outputs = [value.name for value in proto.graph.output]
    found = [split(steps, size, outputs) for size in sizes_of]
    sizes = flow.sizes(typed)
    parts = _parts(path, proto, found[0], steps, typed)
    return SupportReport(
        model=str(path),
        target=target,
        findings=tuple(sorted(findings, key=lambda f: _ORDER[f.severity])),
        operators=len(steps),
        splits=tuple(_cost(one, len(steps), sizes) for one in found),
        engines=tuple(
            _engine(segment, steps, sizes, verified)
            for segment, verified in zip(found[0].engines, parts, strict=True)
        ),
        gains=tuple(_gains(proto, findings, steps, sizes_of[0], outputs)),
        sizes=chosen,
    )


def _unread(path: Path, target: str, why: Finding) -> SupportReport:
    return SupportReport(
        model=str(path), target=target, findings=(why,), operators=0, splits=(), engines=(),
        gains=(), sizes={},
    )  # fmt: skip


def _named(source: Source) -> ModelProto:
    """The model as the parser gets it: every node with a name of its own."""
    if source.renamed is not None:
        return source.renamed
    import onnx

    return onnx.load(source.path, load_external_data=False)


def _input_sizes(
    proto: ModelProto, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """The sizes of each input with dynamic dimensions."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = {v.name: v for v in proto.graph.input if v.name not in stored}
    unknown = sorted(set(shapes) - set(inputs))
    if unknown:
        raise DataError(
            f"no input {unknown[0]!r} to give a shape; the inputs are {', '.join(inputs)}"
        )
    chosen: dict[str, tuple[int, ...]] = {}
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        fixed = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
        given = shapes.get(name)
        if given is None:
            if -1 in fixed:
                chosen[name] = default_profile(fixed)[1]
            continue
        fits = len(given) == len(fixed) and all(
            want in (-1, got) for want, got in zip(fixed, given, strict=True)
        )
        if not fits:
            told = ", ".join("any" if size < 0 else str(size) for size in fixed)
            raise DataError(
                f"the shape {tuple(given)} does not fit input {name}, of dimensions {told}"
            )
        chosen[name] = tuple(given)
    return chosen


def _findings(source: Source, proto: ModelProto, timeout_s: float, progress: bool) -> list[Finding]:
    """What the linter and the parser say: of each node the linter's word, which knows a way out."""
    known = [
        finding
        for finding in lint(source.path if source.renamed is None else proto, "tensorrt")
        if finding.code != "dynamic-shape"  # an engine takes those, with a profile
    ]
    outcome = _rtx_support.ask(source.path, proto, timeout_s=timeout_s, progress=progress)
    told = _rtx_support.refused(outcome, source.reader, source.path.name, timeout_s)
    wrong = {finding.where for finding in known if finding.severity is Severity.ERROR}
    return [*known, *(finding for finding in told if finding.where not in wrong)]


def _parts(
    path: Path,
    proto: ModelProto,
    found: Split,
    steps: Sequence[Step],
    typed: Mapping[str, ValueInfoProto],
) -> list[bool | None]:
    """Whether the parser takes each engine alone; the whole model needs no second question."""
    if len(found.segments) == 1:
        return [True] if found.engines else []
    return [_verified(path, proto, segment, steps, typed) for segment in found.engines]


def _verified(
    path: Path,
    proto: ModelProto,
    segment: Segment,
    steps: Sequence[Step],
    typed: Mapping[str, ValueInfoProto],
) -> bool | None:
    names = {steps[index].name for index in segment.steps}
    part = flow.part(proto, names, segment.reads, segment.writes, typed)
    if part is None:
        return None
    return _rtx_support.ask(path, part, timeout_s=120.0, progress=False).built


def _engine(
    segment: Segment,
    steps: Sequence[Step],
    sizes: Mapping[str, int | None],
    verified: bool | None,
) -> EnginePart:
    return EnginePart(
        operators=len(segment.steps),
        first=steps[segment.steps[0]].name,
        last=steps[segment.steps[-1]].name,
        reads=Traffic.of(segment.reads, sizes),
        writes=Traffic.of(segment.writes, sizes),
        verified=verified,
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
    proto: ModelProto,
    findings: Iterable[Finding],
    steps: Sequence[Step],
    smallest: int,
    outputs: Collection[str],
) -> list[Gain]:
    """Of each cause of a refusal: how many engines there would be without it."""
    refused = [step.name for step in steps if not step.supported]
    causes: dict[str, set[str]] = {}
    for finding in findings:
        if finding.severity is Severity.ERROR:
            causes.setdefault(finding.code, set()).add(finding.where)
    gains = []
    for cause, where in causes.items():
        names = where | flow.partners(proto.graph, where)
        mended = split(with_supported(steps, names), smallest, outputs)
        nodes = tuple(name for name in refused if name in names)
        if nodes:  # and not the file as a whole, or a constant
            gains.append(Gain(cause=cause, nodes=nodes, engines=len(mended.engines)))
    return sorted(gains, key=lambda gain: (gain.engines, len(gain.nodes)))
