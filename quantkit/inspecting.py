"""``inspect``: what of an ONNX file TensorRT would take, why not the rest, and what a split costs.

``check`` asks whether a file runs as it says; this asks, of any file, float or quantized, what
keeps it from being one engine. Nothing is built and no GPU is needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs
from onnx import GraphProto, ModelProto, ValueInfoProto

from quantkit.errors import DataError, ModelFileError
from quantkit.hardware import Gpu, lacking, runtime_of
from quantkit.interfaces import Finding, Severity
from quantkit.onnx import flow, tensor_types
from quantkit.onnx.formats import uses_of
from quantkit.onnx.lint import lint
from quantkit.onnx.weightless import without_weights
from quantkit.targets import _rtx_graph
from quantkit.targets._rtx_costs import EnginePart, Gain, SplitCost, costs
from quantkit.targets._rtx_findings import unreadable
from quantkit.targets._rtx_support import Question, Verdicts, examine, on_owner, parser
from quantkit.targets._shapes import default_profile

#: The sizes of blocks that are compared where none is asked for; 5 is Torch-TensorRT's default.
BLOCK_SIZES = (1, 5, 10)
#: Whose rules and parser are asked. TensorRT 10 and 11 have the same parser.
TARGETS = ("tensorrt_rtx", "tensorrt")
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


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
        sizes: those of tensors that the file leaves open, as bytes were counted.
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
        whole = [part.operators for part in self.engines if part.verified] == [self.operators]
        return whole and not any(f.severity is Severity.ERROR for f in self.findings)

    def to_json(self) -> str:
        """Every field, and ``ok``."""
        return json.dumps({"ok": self.ok, **asdict(self)})


def inspect(
    model: Path | str,
    target: str = "tensorrt_rtx",
    *,
    gpu: Gpu | str | None = None,
    min_block_sizes: Sequence[int] = BLOCK_SIZES,
    shapes: Mapping[str, Sequence[int]] | None = None,
    timeout_s: float = 600.0,
    progress: bool = True,
) -> SupportReport:
    """Tell what of an ONNX file TensorRT would take, why not the rest, and what a split costs.

    Args:
        model: the file. Its weights are not read, and those outside of it not needed.
        target: ``tensorrt_rtx``, or ``tensorrt``, whose parser is the same.
        gpu: refuse the formats that this GPU lacks, such as ``A40``.
        min_block_sizes: the least numbers of operators of an engine to compare.
        shapes: of inputs with dynamic dimensions, the sizes to count bytes for; by default those
            that an engine is built for best. And of tensors inside, where neither the file nor
            the rules of ONNX tell, as of what a custom operator makes: without them the parser
            cannot be asked for what lies behind.
        timeout_s: seconds after which the parser is stopped.
        progress: show a progress bar, on a terminal.

    Raises:
        ModelFileError: there is no such file, its external data is missing, or its nodes read
            what nothing makes.
        DataError: the target, a size of blocks or a shape is none that there can be.
        MissingDependencyError: TensorRT-RTX is not installed.
        RecipeError: there is no such GPU.
    """
    path = Path(model)
    smallest = sorted(set(min_block_sizes))
    if target not in TARGETS:
        raise DataError(f"no parser to ask for target {target!r}; there are: {', '.join(TARGETS)}")
    if not smallest or smallest[0] < 1:
        raise DataError(f"min_block_size must be 1 or more, got {list(min_block_sizes)}")
    try:
        proto, _ = _rtx_graph.load(path)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give an ONNX file"
        ) from error
    except DecodeError as error:
        return _unread(path, target, unreadable(path, str(error)))
    with tempfile.TemporaryDirectory() as folder:
        owners = _simplify(proto, path, Path(folder))
        inputs, inner = tensor_types.chosen_sizes(proto.graph, shapes or {}, _best)
        unranked = tensor_types.without_rank(proto.graph, inputs)
        linted = _linted(proto, owners, Path(folder))
        if gpu is not None:
            linted += _lacking(proto, gpu, target)
        question = Question(
            model=proto,
            label=path.name,
            owners=owners,
            values=tensor_types.typed(proto, unranked or None, inner),
            known={f.where: f for f in reversed(linted) if f.severity is Severity.ERROR},
            smallest=smallest[0],
        )
        verdicts = examine(question, parser(Path(folder), timeout_s=timeout_s, progress=progress))
    linted += _unasked(proto.graph, verdicts, question.values)
    sizes = tensor_types.sizes(tensor_types.typed(proto, inputs, inner))
    found = costs(proto.graph, verdicts, smallest, sizes)
    return SupportReport(
        model=str(path),
        target=target,
        findings=_findings(linted, verdicts, {node.name for node in proto.graph.node}),
        operators=found.operators,
        splits=found.splits,
        engines=found.engines,
        gains=found.gains,
        sizes={**inputs, **inner},
    )


def _unread(path: Path, target: str, why: Finding) -> SupportReport:
    return SupportReport(
        model=str(path), target=target, findings=(why,), operators=0, splits=(), engines=(),
        gains=(), sizes={},
    )  # fmt: skip


def _simplify(proto: ModelProto, path: Path, folder: Path) -> dict[str, str]:
    """Sort and name the nodes, and take the weights out; returns whose body each node is in."""
    if not proto.HasField("graph"):
        raise ModelFileError(f"{path}: it holds no graph, so it is no ONNX model; export it again")
    try:
        flow.in_order(proto.graph)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}; export the model again") from error
    without_weights(proto, path, folder)
    return flow.name_inner(proto.graph)


def _best(dims: Sequence[int]) -> tuple[int, ...]:
    return default_profile(dims)[1]


def _linted(proto: ModelProto, owners: Mapping[str, str], folder: Path) -> list[Finding]:
    """What the linter says; of a node in a body, on the node that has the body."""
    file = folder / "model.onnx"  # beside the values that were taken out of it
    onnx.save(proto, file)
    return [
        on_owner(f, owners)
        for f in lint(file, "tensorrt")
        if f.code != "dynamic-shape"  # an engine takes those, with a profile
    ]


def _lacking(proto: ModelProto, gpu: Gpu | str, target: str) -> list[Finding]:
    """What of its formats a GPU lacks, node by node."""
    chosen = gpu if isinstance(gpu, Gpu) else Gpu.of(gpu)
    runtime = runtime_of(target)
    uses = uses_of(proto)
    return [found for format, node in uses for found in lacking({format: node}, chosen, runtime)]


def _unasked(
    graph: GraphProto, verdicts: Verdicts, values: Mapping[str, ValueInfoProto]
) -> list[Finding]:
    """The tensors of unknown rank because of which the parser could not be asked."""
    parts = [names for names, verified in verdicts.verified.items() if verified is None]
    unknown = {name for names in parts for name in flow.unknown_reads(graph, names, values)}
    inside = {name for names in parts for name in names}
    follows = {n for node in graph.node if node.name in inside for n in node.output}
    return [
        Finding(
            severity=Severity.WARNING,
            code="unknown-sizes",
            where=name,
            why="Nothing tells its sizes, so the parser was not asked for what lies behind it: of "
            "that only operators and attributes were checked.",
            fix=f"Give them: --shape {name}=1,3,224,224, say.",
        )
        for name in sorted(unknown - follows)
    ]


def _findings(
    linted: Iterable[Finding], verdicts: Verdicts, nodes: Collection[str]
) -> tuple[Finding, ...]:
    """The worst first, without doubts of the linter that the parser does not share."""
    kept = [
        f
        for f in linted
        if f.severity is not Severity.ERROR or f.where in verdicts.refused or f.where not in nodes
    ]
    every = dict.fromkeys([*kept, *verdicts.refused.values(), *verdicts.notes])
    return tuple(sorted(every, key=lambda finding: _ORDER[finding.severity]))
