"""``python -m benchmarks.half``: what half precision costs and brings on the real models.

Each model, in float and in INT8, is converted to float16 and bfloat16 and judged on data that no
conversion has seen; TensorRT-RTX builds it for SM86 before and after, and its list of kernels
tells what still reads float32. Then one product is built in each form that Q/DQ could have.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from benchmarks import half_forms, spine
from benchmarks.machine import machine
from benchmarks.tables import table
from benchmarks.zoo import ALL, MINILM, BenchModel
from quantkit import numerics
from quantkit.errors import TargetError
from quantkit.interfaces import Finding
from quantkit.onnx._half_format import FORMATS, Precision
from quantkit.onnx._half_running import open_file, rounded, run, session
from quantkit.onnx.export import export_onnx
from quantkit.onnx.half import HalfReport, to_half
from quantkit.targets._engine_layers import Kernel
from quantkit.targets._engine_source import read_source
from quantkit.targets._rtx_layers import parse_layers
from quantkit.targets.tensorrt_rtx import TensorRTRTX

RESULTS = Path(__file__).parent / "results" / "half.json"
PRECISIONS: tuple[Precision, ...] = ("float16", "bfloat16")
#: Batches of 32 of the calibration data that conversions look at.
BATCHES = 4
#: Inputs and labels.
Batches: TypeAlias = Sequence[tuple[Sequence[Tensor], Tensor]]
_PROFILE = ((1, 16), (8, 64), (32, 256))


def main() -> None:
    """Measure all of it, write the JSON and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--limit", type=int, help="samples of each evaluation; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"machine": machine(), "files": [], "forms": half_forms.measure()}
    for model in ALL:
        if not options.only or model.name in options.only:
            results["files"] += measure(model, options.limit)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(render(results)))


def measure(model: BenchModel, limit: int | None) -> Iterator[dict[str, Any]]:
    """One row for each file of a model: float and INT8, in float32 and converted."""
    module = model.load()
    with tempfile.TemporaryDirectory() as name:
        whole = spine.export_float(model, module, Path(name) / "float.onnx")
        int8 = Path(name) / "int8.onnx"
        export_onnx(spine.quantized(model, "int8_ptq", module), int8, form="tensorrt")
        batches = list(model.evaluation(spine.BATCH, limit))
        gold = torch.cat([labels for _, labels in batches])
        wanted = outputs(open_file(whole), whole, batches)
        for file in (whole, int8):
            itself = wanted
            for rest, path, runs, told in forms_of(model, file):
                print(f"{model.name} {file.stem} {rest}", file=sys.stderr, flush=True)
                got = outputs(runs, file, batches)
                itself = got if told is None else itself
                yield {
                    "model": model.name,
                    "file": file.stem,
                    "rest": rest,
                    "megabytes": path.stat().st_size / 1e6,
                    "points": model.metric(got, gold),
                    "sqnr_db": _finite(numerics.sqnr(wanted, got)),
                    "itself_db": _finite(numerics.sqnr(itself, got)),
                    "biases_db": None if told is None else biases(file, rest, wanted, batches),
                    "kept": None if told is None else len(told.kept),
                    "casts": 0 if told is None else told.casts,
                    **engine(path, dynamic=model is MINILM),
                }


def forms_of(model: BenchModel, file: Path) -> Iterator[tuple[str, Path, Any, HalfReport | None]]:
    """A file as it is and converted: the format of its rest, its path, how it runs, the report."""
    yield "float32", file, open_file(file), None
    for precision in PRECISIONS:
        path = file.with_suffix(f".{precision}.onnx")
        data = islice(model.calibration(spine.CALIBRATION_BATCH), BATCHES)
        report = to_half(file, path, precision=precision, data=data)
        yield precision, path, session(rounded(ir.load(path), FORMATS[precision])), report


def biases(file: Path, precision: str, wanted: Tensor, batches: Batches) -> float | None:
    """How far a file's outputs are from the float file's if nothing but its biases is rounded."""
    model = ir.load(file)
    for node in model.graph:
        index = {"Conv": (2,), "Gemm": (2,), "Add": (0, 1)}.get(node.op_type, ())
        for value in (node.inputs[i] for i in index if i < len(node.inputs)):
            if value is not None and value.const_value is not None:
                array = FORMATS[precision].round(value.const_value.numpy())
                value.const_value = ir.tensor(array, name=value.name)
    return _finite(numerics.sqnr(wanted, outputs(session(model), file, batches)))


def outputs(runs: Any, file: Path, batches: Batches) -> Tensor:
    """The first output of a session for all batches."""
    names = [i.name for i in onnx.load(file, load_external_data=False).graph.input]
    feeds = ({n: x.numpy() for n, x in zip(names, b, strict=True)} for b, _ in batches)
    return torch.cat([torch.from_numpy(run(runs, feed)[0]) for feed in feeds])


def engine(path: Path, *, gpu: str = "8.6", dynamic: bool = False) -> dict[str, int]:
    """How many kernels an engine has, how many multiply in INT8, and what reads float32."""
    shapes = {"input_ids": _PROFILE, "attention_mask": _PROFILE} if dynamic else None
    found = kernels(path, TensorRTRTX(compute_capability=gpu, shapes=shapes, progress=False))
    reads = float32_reads(found)
    return {
        "kernels": len(found),
        "int8": sum(in_int8(kernel) for kernel in found),
        "reads_input": len(reads["input"]),
        "reads_sums": len(reads["sums"]),
        "reads_float32": len(reads["float32"]),
        "float32_products": sum(k.is_product for k in reads["float32"]),
    }


def kernels(path: Path, target: TensorRTRTX) -> tuple[Kernel, ...]:
    """The kernels that TensorRT-RTX lists while it builds a file.

    Raises:
        TargetError: it refuses the file.
    """
    source = read_source(path)
    if isinstance(source, Finding):
        raise TargetError(str(source))
    with tempfile.TemporaryDirectory() as folder:
        outcome = target._built(source, Path(folder) / "engine")
    if not outcome.built:
        raise TargetError(f"{path.name} is not built: {outcome}")
    return parse_layers(outcome.layers)


def in_int8(kernel: Kernel) -> bool:
    """Whether a kernel multiplies integers."""
    return bool(kernel.is_product and kernel.inputs and kernel.inputs[0].format == "int8")


def float32_reads(found: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    """The kernels that read float32: a model's ``input``, the ``sums`` of INT8, or another's."""
    maker = {tensor.name: kernel for kernel in found for tensor in kernel.outputs}
    reads: dict[str, list[Kernel]] = {"input": [], "sums": [], "float32": []}
    for kernel in found:
        kinds = set()
        for tensor in kernel.inputs:
            if tensor.format == "float32":
                source = maker.get(tensor.name)
                sums = source is not None and in_int8(source)
                kinds.add("input" if source is None else "sums" if sums else "float32")
        for kind in kinds:
            reads[kind].append(kernel)
    return reads


def render(results: dict[str, Any]) -> Iterator[str]:
    """Three tables in Markdown: outputs, engines, and the forms of Q/DQ."""
    rows = results["files"]
    names = ("model", "file", "rest in")
    yield from table(
        (*names, "MB", "points", "dB to float", "dB to itself", "biases alone"),
        (
            (
                *_named(r), f"{r['megabytes']:.2f}", f"{r['points']:.2f}",
                *(_db(r[key]) for key in ("sqnr_db", "itself_db", "biases_db")),
            )
            for r in rows
        ),
    )  # fmt: skip
    yield ""
    counts = ("kept", "kernels", "int8", "reads_float32", "float32_products")
    yield from table(
        (*names, "nodes in float32", "kernels", "in INT8", "read float32", "of them products"),
        ((*_named(r), *("all" if r[key] is None else str(r[key]) for key in counts)) for r in rows),
    )
    yield ""
    yield from half_forms.render(results["forms"])


def _named(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["file"], row["rest"]


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _finite(value: float) -> float | None:
    """JSON has no infinity: equal in every bit."""
    return None if math.isinf(value) else value


if __name__ == "__main__":
    main()
