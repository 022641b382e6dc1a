"""How a graph is shared out between TensorRT's engines and PyTorch: values, and what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from quantkit.interfaces import Finding, LayerCoverage, Severity

#: Layers that are worth few bits, by operator.
COMPUTE = frozenset(
    f"aten.{name}.default"
    for name in (
        *("convolution", "linear", "matmul", "addmm", "mm", "bmm", "baddbmm"),
        "scaled_dot_product_attention",
    )
)
#: Which operands of a layer are multiplied; of others the first two.
_OPERANDS = {"aten.addmm.default": (1, 2), "aten.baddbmm.default": (1, 2)}
#: What values pass through on their grid, between a quantizer and a layer.
_MOVING = frozenset(
    f"aten.{name}"
    for name in (
        *("permute.default", "transpose.int", "t.default", "view.default", "reshape.default"),
        *("expand.default", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "clone.default"),
        *("slice.Tensor", "select.int", "max_pool2d.default", "constant_pad_nd.default"),
        *("max_pool1d.default", "max_pool3d.default", "_reshape_copy.default", "_to_copy.default"),
    )
)
#: One of several results: it runs where what has them does.
_PART = "_operator.getitem"
#: The sizes of blocks that a report tells of.
BLOCK_SIZES = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator of the graph that is shared out.

    Attributes:
        name: of its node.
        operator: such as ``aten.convolution.default``.
        module: the path of the module that it came from; empty where it is not known.
        inputs: the names of what it reads, in order; constants and inputs of the model too.
        bytes: of its result; of a batch as in the example, where it is dynamic.
        engine: the number of its engine, from 0; ``None`` where PyTorch runs it.
        supported: TensorRT has it.
        grid: the format, where it is the fake-quantize operator.
    """

    name: str
    operator: str
    module: str
    inputs: tuple[str, ...]
    bytes: int
    engine: int | None
    supported: bool
    grid: str | None = None


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A graph shared out.

    Attributes:
        steps: in the order in which they run.
        smallest: the ``min_block_size`` that it was shared out with.
        blocks: how many operators each block of convertible ones has, however small it is.
    """

    steps: tuple[Step, ...]
    smallest: int
    blocks: tuple[int, ...]

    @property
    def engines(self) -> tuple[int, ...]:
        """How many operators each engine has."""
        counts = Counter(step.engine for step in self.steps if step.engine is not None)
        return tuple(counts[engine] for engine in sorted(counts))

    @property
    def unsupported(self) -> dict[str, int]:
        """How often each operator is there that has no converter."""
        return dict(Counter(step.operator for step in self.steps if not step.supported))

    def kept(self, smallest: int) -> Partition:
        """The same with the engines of fewer than ``smallest`` operators left to PyTorch."""
        taken = [engine for engine, size in enumerate(self.engines) if size >= smallest]
        number = {engine: index for index, engine in enumerate(taken)}
        steps = tuple(
            step if step.engine is None else replace(step, engine=number.get(step.engine))
            for step in self.steps
        )
        return replace(self, steps=steps, smallest=smallest)

    def engines_at(self, smallest: int) -> int:
        """How many engines another ``min_block_size`` would make.

        Example:
            >>> Partition(steps=(), smallest=5, blocks=(2, 7, 12)).engines_at(5)
            2
        """
        return sum(size >= smallest for size in self.blocks)

    @cached_property
    def crossing(self) -> tuple[int, int]:
        """How many tensors go from an engine or PyTorch to another, and their bytes."""
        by_name = {step.name: step for step in self.steps}
        over = {
            source.name: source.bytes
            for step in self.steps
            for name in step.inputs
            if (source := by_name.get(name)) is not None and source.engine != step.engine
        }
        return len(over), sum(over.values())

    def layers(self) -> Iterator[LayerCoverage]:
        """The compute layers, in order, and how each runs."""
        by_name = {step.name: step for step in self.steps}
        for step in self.steps:
            if step.operator not in COMPUTE:
                continue
            left, right = (
                self._grid(by_name, step, i) for i in _OPERANDS.get(step.operator, (0, 1))
            )
            precision, reason = _how(step, left, right, self.smallest)
            yield LayerCoverage(
                node=step.module or step.name,
                op_type=step.operator.split(".")[1],
                quantized=right is not None,
                precision=precision,
                kernel="" if step.engine is None else f"engine {step.engine + 1}",
                reason=reason,
            )

    def _grid(self, by_name: dict[str, Step], step: Step, index: int) -> str | None:
        """The format of the grid that an operand lies on."""
        source = by_name.get(step.inputs[index]) if index < len(step.inputs) else None
        while source is not None and source.grid is None and source.operator in _MOVING:
            source = by_name.get(source.inputs[0]) if source.inputs else None
        return None if source is None else source.grid

    def findings(self) -> list[Finding]:
        """What the share tells: what has no converter, and what splits the graph."""
        found = [_no_converter(name, self) for name in self.unsupported if name != _PART]
        count, engines = len(self.steps), len(self.engines)
        if engines == 0 and count:
            found.append(_no_engine(self))
        elif engines > 1:
            found.append(_split(self))
        return found


def _how(step: Step, left: str | None, right: str | None, smallest: int) -> tuple[str, str]:
    """The precision of a layer, and why it is not what the grids promise."""
    if step.engine is None:
        if not step.supported:
            return (
                "float32",
                f"runs in PyTorch: Torch-TensorRT has no converter for {step.operator}",
            )
        return "float32", f"runs in PyTorch: its block has fewer than {smallest} operators"
    if right is None:
        return "float32", "not quantized in the file"
    return (f"{right} weights", "") if left is None else (left, "")


def _no_converter(operator: str, partition: Partition) -> Finding:
    count, engines = partition.unsupported[operator], len(partition.engines)
    times = "once" if count == 1 else f"{count} times"
    if operator.startswith("aten.fake_quantize"):
        why = (
            f"Torch-TensorRT has no converter for it ({times}), so PyTorch runs it, every layer "
            "around it in float, and it splits the graph."
        )
        fix = "Export the model with quantkit, which writes Q/DQ."
    elif operator.startswith("quantkit.fake_quantize"):
        why = (
            f"TensorRT has no such grid ({times}): it takes zero-point 0, and fewer than 8 bits or "
            "groups for weights alone."
        )
        fix = "Quantize with a symmetric recipe such as int8_ptq."
    else:
        why = (
            f"Torch-TensorRT has no converter for it ({times}), so PyTorch runs it between "
            f"{engines} engines."
        )
        fix = "Replace it in the model by operators that have one, or register a converter."
    return Finding(severity=Severity.WARNING, code="no-converter", where=operator, why=why, fix=fix)


def _no_engine(partition: Partition) -> Finding:
    largest = max(partition.blocks, default=0)
    why = (
        f"PyTorch runs all {len(partition.steps)} operators: the largest block that TensorRT could "
        f"take has {largest}, and min_block_size is {partition.smallest}."
    )
    fix = f"Set min_block_size to {largest} or less."
    if largest == 0:
        fix = "Replace the operators named above."
    return Finding(severity=Severity.WARNING, code="no-engine", where="graph", why=why, fix=fix)


def _split(partition: Partition) -> Finding:
    tensors, size = partition.crossing
    at = ", ".join(f"{partition.engines_at(n)} at {n}" for n in BLOCK_SIZES)
    why = (
        f"The graph becomes {len(partition.engines)} engines with min_block_size "
        f"{partition.smallest} ({at}), and {tensors} tensors of {size:,} bytes cross their borders."
    )
    fix = (
        "Replace what splits it; or raise min_block_size, so that small blocks stay in PyTorch "
        f"(the largest has {max(partition.blocks)} operators)."
    )
    return Finding(severity=Severity.INFO, code="many-engines", where="graph", why=why, fix=fix)
