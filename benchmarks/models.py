"""What becomes of well-known model families, all the way to the engine: ``docs/models.md``.

Each family of ``benchmarks.families`` is quantized, exported, compared with ONNX Runtime and built
by TensorRT-RTX. Run ``python -m benchmarks.models --out docs/models.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.families import FAMILIES, Family
from quantkit import numerics
from quantkit.files import replacing
from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.graph.aten import describe
from quantkit.graph.plan import Placement
from quantkit.interfaces import ExportForm, Inspection
from quantkit.onnx.export import export_onnx
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.targets.tensorrt_rtx import TensorRTRTX
from quantkit.workflow import quantize

FORMS: tuple[ExportForm, ...] = ("tensorrt", "onnxruntime")
#: Beyond this SQNR only the last bits of float32 differ, and no value took another integer.
EXACT = 100.0
#: TensorRT's name for its fused attention kernel begins so.
FUSED_ATTENTION = "_gemm_mha"

#: Operators that are no layers: they hold little arithmetic, and run in a neighbour's kernel.
_BETWEEN = {
    Kind.EMBEDDING: ("embedding", "a lookup, no arithmetic"),
    Kind.NORM: ("norm", "needs float's range; the quantizer behind it runs in the same kernel"),
    Kind.SOFTMAX: (
        "softmax",
        "in float inside the attention kernel; what it puts out is quantized",
    ),
    Kind.RELU: ("ReLU or clip", "runs in the kernel of the layer before it"),
    Kind.POINTWISE: ("element-wise", "runs in a neighbour's kernel, with the quantizer behind it"),
    Kind.MUL: ("element-wise", "runs in a neighbour's kernel, with the quantizer behind it"),
    Kind.AVERAGE_POOL: ("mean", "a mean is no point of the grid of what it averages"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one family under one recipe.

    Attributes:
        family: which one.
        plan: what is quantized, and why.
        graph: the quantized model's operators.
        fidelity: of the simulation's outputs to the float model's, SQNR in dB.
        parity: by form of export, for each row of a batch, of ONNX Runtime's outputs to the
            simulation's, SQNR in dB.
        engine: what TensorRT-RTX makes of the file in its form.
    """

    family: Family
    plan: Placement
    graph: Graph
    fidelity: float
    parity: dict[ExportForm, tuple[float, ...]]
    engine: Inspection

    @property
    def layers(self) -> int:
        """How many convolutions and matrix products there are."""
        return sum(d.kind is not Kind.ADD for d in self.plan.decisions)

    @property
    def attentions(self) -> int:
        """How many attentions have both products quantized."""
        products = [d for d in self.plan.decisions if d.kind is Kind.MATMUL and d.quantized]
        return len(products) // 2

    @property
    def fused(self) -> int:
        """How many attentions run in a kernel of their own, in INT8."""
        kernels = [
            layer.kernel
            for layer in self.engine.layers
            if layer.kernel.startswith(FUSED_ATTENTION) and layer.precision == "int8"
        ]
        return sum(count == 2 for count in Counter(kernels).values())


def measure(
    family: Family,
    folder: Path,
    *,
    recipe: str = "int8_ptq",
    forms: Sequence[ExportForm] = FORMS,
    rows: int = 16,
) -> Result:
    """Take a family the whole way, with its ONNX files in ``folder``.

    Random batches calibrate; other random rows are compared, each row for itself: where the float
    arithmetic of two runtimes ends on two sides of a rounding boundary, that row alone differs.
    """
    model = family.load()
    quantized = quantize(
        model, recipe, example_inputs=family.inputs(), calibration=list(family.batches(4)),
        dynamic_shapes=family.dynamic_shapes,
    )  # fmt: skip
    inputs = family.inputs(rows, seed=7)
    with torch.inference_mode():
        reference, simulated = first_output(model(*inputs)), first_output(quantized(*inputs))
    feed = {
        name: tensor.numpy()
        for name, tensor in zip(quantized.capture.input_names, inputs, strict=True)
    }
    parity: dict[ExportForm, tuple[float, ...]] = {}
    for form in forms:
        path = export_onnx(quantized, folder / f"{family.name}.{form}.onnx", form=form)
        [outputs] = OnnxRuntime(exact=True, threads=1).run(path, [feed])
        parity[form] = tuple(
            numerics.sqnr(ours, theirs)
            for ours, theirs in zip(simulated, torch.from_numpy(outputs[0]), strict=True)
        )
    target = TensorRTRTX(shapes=family.profile, progress=False)
    return Result(
        family=family,
        plan=quantized.plan,
        graph=describe(quantized.graph).graph,
        fidelity=numerics.sqnr(reference, simulated),
        parity=parity,
        engine=target.inspect(folder / f"{family.name}.tensorrt.onnx"),
    )


def first_output(outputs: object) -> Tensor:
    """The first tensor of what a model returns, such as the logits."""
    return next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))


_COLUMNS = (
    "model", "layers", "in INT8", "in float", "simulation to float", "ONNX Runtime to simulation",
    "TensorRT-RTX runs in INT8", "INT8 attention", "weight-only",
)  # fmt: skip


def render(results: Mapping[str, Result], weight_only: Mapping[str, Result]) -> str:
    """The page, from the results by family under ``int8_ptq`` and ``int8_weight_only``."""
    packages = ("transformers", "torch", "onnxruntime", "tensorrt-rtx-cu13")
    lines = [
        _INTRODUCTION.format(versions=", ".join(f"{p} {version(p)}" for p in packages)),
        *_table(
            _COLUMNS,
            [_summary(result, weight_only[name]) for name, result in results.items()],
        ),
        "",
        _READING,
    ]
    for name, result in results.items():
        lines += _section(result, weight_only[name])
    return "\n".join(lines).rstrip() + "\n"


_INTRODUCTION = """\
# Model families

Written by `make docs-models` (`python -m benchmarks.models --out docs/models.md`); do not edit.

Eight families of the transformers package, small and with random weights
(`benchmarks/families.py`), taken the whole way with the recipe `int8_ptq`: quantized, exported,
run by ONNX Runtime, built by TensorRT-RTX for SM86 with a dynamic batch. Versions:
{versions}.
"""

_READING = """\
- *layers*: convolutions and matrix products, those of attention as well.
- *simulation to float*: SQNR in dB of the quantized model in PyTorch, to the float model. Weights
  are random and so are the calibration data: it says that nothing is broken, not how good INT8 is.
- *ONNX Runtime to simulation*: SQNR in dB of ONNX Runtime (exact mode) to the simulation, the
  median of the rows of a batch, over both forms of export. Above 100 dB the two round every value
  to the same integer. A row far below is one in which the float arithmetic of the two, the same
  but for its last bit, ended on two sides of a rounding boundary: one value then differs by one
  step, and so does what follows from it.
- *TensorRT-RTX runs in INT8*: of the layers that the plan quantizes, how many the builder gives an
  INT8 kernel.
- *INT8 attention*: how many attentions run as one fused kernel with INT8 products.
- *weight-only*: with the recipe `int8_weight_only`, how many of the layers that it quantizes
  multiply with INT8 weights dequantized inside the kernel. Convolutions have no such kernel and
  stay in float.
"""


def _summary(result: Result, weights: Result) -> tuple[str, ...]:
    rows = [decibel for form in result.parity.values() for decibel in form]
    quantized = len(result.plan.quantized)
    attention = f"{result.fused} of {result.attentions}" if result.attentions else "none in it"
    return (
        f"[{result.family.title}](#{result.family.title.lower().replace(' ', '-')})",
        str(result.layers),
        str(quantized),
        str(result.layers - quantized),
        _decibel(result.fidelity),
        _parity(rows),
        f"{result.engine.covered} of {result.engine.planned}",
        attention,
        f"{weights.engine.covered} of {weights.engine.planned}",
    )


def _parity(rows: Sequence[float]) -> str:
    """The median, and how many rows lie far below it."""
    low = [decibel for decibel in rows if decibel <= EXACT]
    text = _decibel(statistics.median(rows))
    return f"{text} ({len(low)} of {len(rows)} rows lower, to {min(low):.0f})" if low else text


def _decibel(value: float) -> str:
    return f"> {EXACT:.0f}" if value > EXACT else f"{value:.0f}"


def _section(result: Result, weights: Result) -> Iterator[str]:
    ops = {op.name: op for op in result.graph.ops}
    yield f"## {result.family.title}"
    yield ""
    yield result.family.what
    yield ""
    kinds = Counter(_kind(ops[d.op]) for d in result.plan.decisions if d.quantized)
    yield from _table(["in INT8", "how many"], [(k, str(n)) for k, n in kinds.items()])
    yield ""
    yield from _table(["not in INT8", "how many", "why"], list(_in_float(result, ops)))
    yield ""
    floats = [c for c in weights.engine.layers if c.quantized and c.precision.startswith("float")]
    if floats:
        names = sorted({layer.node.rpartition(".")[2] for layer in floats})
        yield f"Weight-only, {len(floats)} layers ({', '.join(names)}) multiply in float against"
        yield f"the plan: {floats[0].reason}."
        yield ""


def _in_float(result: Result, ops: Mapping[str, Op]) -> Iterator[tuple[str, str, str]]:
    """Layers and adds by the plan's reason, then the operators that are no layers."""
    kept = Counter((_kind(ops[d.op]), d.reason) for d in result.plan.decisions if not d.quantized)
    for (kind, reason), count in kept.items():
        yield kind, str(count), reason
    read = {edge.op for tensor in result.plan.tensors for edge in tensor.edges}
    between = Counter(_BETWEEN[op.kind] for op in ops.values() if op.kind in _BETWEEN)
    between -= Counter(_BETWEEN[ops[name].kind] for name in read if ops[name].kind in _BETWEEN)
    for (kind, reason), count in between.items():
        yield kind, str(count), reason


def _kind(op: Op) -> str:
    """Such as ``depthwise convolution 7 x 7``."""
    if op.kind is Kind.CONV:
        size = " x ".join(map(str, op.kernel))
        return f"{'depthwise ' if op.groups > 1 else ''}convolution {size}"
    names = {Kind.MATMUL: "product of two activations", Kind.ADD: "residual add"}
    return names.get(op.kind, str(op.kind))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Measure every family, or those asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    parser.add_argument("--only", choices=[family.name for family in FAMILIES], action="append")
    options = parser.parse_args()
    results: dict[str, Result] = {}
    weight_only: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            if options.only and family.name not in options.only:
                continue
            print(family.title, flush=True)
            results[family.name] = measure(family, Path(folder))
            weight_only[family.name] = measure(
                family, Path(folder), recipe="int8_weight_only", forms=("tensorrt",)
            )
    with replacing(options.out) as temporary:
        temporary.write_text(render(results, weight_only), encoding="utf-8")


if __name__ == "__main__":
    main()
