"""One INT8 product with the rest in half, in every form that its Q/DQ could have.

The scale may be half or float32; with a float32 scale, half comes out of DequantizeLinear itself
(``output_dtype``, opset 23) or of a Cast behind it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.tables import table
from quantkit.interfaces import Finding
from quantkit.targets._engine_source import read_source
from quantkit.targets._rtx_layers import parse_layers
from quantkit.targets.tensorrt_rtx import TensorRTRTX

FORMS = ("half scale", "float32 scale, output_dtype", "float32 scale, Cast")
OPERATORS = ("Conv", "Gemm", "MatMul")
_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: The factor that a product's sum is multiplied with before it is written, as the engine has it.
_ALPHA = re.compile(rb" alpha=([0-9A-F]{8}) ")
_ONE = b"3F800000"


def measure(gpu: str = "8.6") -> list[dict[str, Any]]:
    """One row for each operator, format and pair of forms."""
    return [
        {
            "operator": operator,
            "rest": rest,
            "activation": activation,
            "weight": weight,
            **_built(network(operator, rest, activation, weight), gpu),
        }
        for operator in OPERATORS
        for rest in _TYPES
        for activation in FORMS
        for weight in FORMS
    ]


def network(operator: str, rest: str, activation: str, weight: str) -> onnx.ModelProto:
    """``x → Cast → Q → DQ → operator(weight, bias) → Cast``, the rest in half."""
    net = _Network(rest)
    shape = (64, 64, 3, 3) if operator == "Conv" else (64, 64)
    rng = np.random.default_rng(0)
    x = net.node("Cast", ["x"], "half", to=net.type)
    grid = [net.scale("x_scale", np.float32(0.0213), activation), net.put("x_zero", np.int8(0))]
    before = x
    if activation == FORMS[2]:
        before = net.node("Cast", [x], "x_float32", to=TensorProto.FLOAT)
    x = net.dequantize(
        [net.node("QuantizeLinear", [before, *grid], "x_q"), grid[0]], "dx", activation
    )
    stored = net.put("w_q", rng.integers(-127, 128, shape).astype(np.int8))
    scales = ((rng.random(64) + 0.5) * 0.01).astype(np.float32)
    axis = 1 if operator == "MatMul" else 0
    w = net.dequantize([stored, net.scale("w_scale", scales, weight)], "dw", weight, axis=axis)
    bias = net.put("bias", rng.standard_normal(64).astype(_NUMPY[rest]))
    if operator == "MatMul":
        y = net.node("Add", [net.node("MatMul", [x, w], "product"), bias], "added")
    else:
        options = {"pads": [1] * 4} if operator == "Conv" else {"transB": 1}
        y = net.node(operator, [x, w, bias], "product", **options)
    net.node("Cast", [y], "y", to=TensorProto.FLOAT)
    return net.done((4, 64, 28, 28) if operator == "Conv" else (64, 64))


class _Network:
    """Writes a graph; every tensor has its node's name."""

    def __init__(self, rest: str) -> None:
        self.rest, self.type = rest, _TYPES[rest]
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def put(self, name: str, array: Any) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def scale(self, name: str, array: Any, form: str) -> str:
        return self.put(name, array.astype(_NUMPY[self.rest]) if form == FORMS[0] else array)

    def dequantize(self, inputs: list[str], name: str, form: str, **attributes: Any) -> str:
        if form == FORMS[1]:
            attributes["output_dtype"] = self.type
        out = self.node("DequantizeLinear", inputs, name, **attributes)
        return self.node("Cast", [out], f"{name}_half", to=self.type) if form == FORMS[2] else out

    def done(self, shape: tuple[int, ...]) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "form",
            [value("x", TensorProto.FLOAT, shape)],
            [value("y", TensorProto.FLOAT, None)],
            self.stored,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def _built(model: onnx.ModelProto, gpu: str) -> dict[str, Any]:
    """What the builder makes of it: the format of the sums, and whether they are scaled in it."""
    with tempfile.TemporaryDirectory() as folder:
        path, engine = Path(folder) / "form.onnx", Path(folder) / "engine"
        onnx.save(model, path)
        source = read_source(path)
        assert not isinstance(source, Finding)
        outcome = TensorRTRTX(compute_capability=gpu, progress=False)._built(source, engine)
        if not outcome.built:
            return {"built": False, "int8": False, "sums": "", "raw": False}
        alphas = _ALPHA.findall(engine.read_bytes())
    kernel = next(k for k in parse_layers(outcome.layers) if k.is_product)
    sums = kernel.outputs[0].format
    return {
        "built": True,
        "int8": kernel.inputs[0].format == "int8",
        "sums": sums,
        "raw": sums != "float32" and set(alphas) == {_ONE},
    }


def render(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table in Markdown, a row for each pair of forms."""
    cells: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for r in rows:
        told = cells.setdefault((r["activation"], r["weight"]), {})
        told.setdefault(r["operator"], {})[r["rest"]] = _told(r)
    yield from table(
        ("activation", "weight", *OPERATORS),
        ((*pair, *(_both(told[o]) for o in OPERATORS)) for pair, told in cells.items()),
    )


def _told(row: dict[str, Any]) -> str:
    if not row["built"]:
        return "refused"
    sums = "half" if row["sums"] == row["rest"] else row["sums"]
    raw = ", unscaled" if row["raw"] else ""
    return f"{'INT8' if row['int8'] else 'float'}, sums in {sums}{raw}"


def _both(told: dict[str, str]) -> str:
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{rest}: {text}" for rest, text in told.items())
