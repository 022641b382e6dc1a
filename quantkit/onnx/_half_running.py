"""Runs a float file beside what became of it: ranges before, and parity after.

ONNX Runtime's CPU kernels compute chains of float16 operators in float32 and round nothing in
between, so that an overflow goes unseen, and they have next to none for bfloat16. So the converted
file is not run itself: its numbers and nodes are, in float32, with every tensor that is half in
the file rounded to half.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from quantkit import batches
from quantkit.errors import DataError, MissingDependencyError, ModelFileError
from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import constant, graphs, is_float, is_integer
from quantkit.onnx.edit import add_constant
from quantkit.onnx.opsets import NEWEST_SAFE, lower_opset
from quantkit.onnx.parity import OutputParity, ParityMeter
from quantkit.onnx.reading import save

Feed: TypeAlias = Mapping[str, np.ndarray]


def feeds(data: Iterable[Any], graph: ir.Graph) -> Iterator[Feed]:
    """Batches by the names of a graph's inputs.

    Raises:
        DataError: no batch, one that is not finite, or inputs that the model has not.
    """
    names = [str(value.name) for value in graph.inputs]
    for args, kwargs in batches.as_batches(data):
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or set(given) != set(names):
            listed = ", ".join([*(f"input {i}" for i in range(len(args))), *kwargs])
            raise DataError(
                f"data has the inputs {listed}; the file takes {', '.join(names)}; name them alike"
            )
        yield {name: value.detach().cpu().numpy() for name, value in given.items()}


class Peaks:
    """The largest magnitude of each float32 tensor of a model, over all batches.

    The maxima are computed in ONNX Runtime, beside the model: no tensor leaves it. Infinities do
    not count: they are masks.

    Attributes:
        found: by the tensors' names.
    """

    def __init__(self, model: ir.Model) -> None:
        self.found: dict[str, float] = {}
        copy = model.clone()
        self._names = _put_out_peaks(copy.graph)
        self._session = session(copy)

    def update(self, feed: Feed) -> None:
        """Take in one batch.

        Raises:
            DataError: ONNX Runtime cannot run it.
        """
        for name, value in zip(self._names, run(self._session, feed), strict=True):
            if value.size:
                self.found[name] = max(self.found.get(name, 0.0), float(value))


def _put_out_peaks(graph: ir.Graph) -> list[str]:
    """Let a graph put out the largest magnitude of each of its tensors, and nothing else."""
    values = [*graph.inputs]
    values += [v for n in graph if n.op_type != "DequantizeLinear" for v in n.outputs]
    infinite = any(
        bool(np.isinf(array).any())
        for value in graph.initializers.values()
        if is_float(value) and (array := constant(value)) is not None
    )
    zero = ir.val("quantkit_zero", const_value=ir.tensor(np.float32(0), name="quantkit_zero"))
    graph.register_initializer(zero)
    names, outputs = [], []
    for value in values:
        if not is_float(value):
            continue
        nodes, size = [], value
        if infinite:
            nodes.append(ir.node("IsInf", [size]))
            nodes.append(ir.node("Where", [nodes[-1].outputs[0], zero, size]))
            size = nodes[-1].outputs[0]
        nodes.append(ir.node("Abs", [size]))
        nodes.append(ir.node("ReduceMax", [nodes[-1].outputs[0]], {"keepdims": 0}))
        for index, node in enumerate(nodes):
            node.outputs[0].name = f"{value.name}/quantkit_peak_{index}"
        graph.extend(nodes)
        out = nodes[-1].outputs[0]
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        names.append(str(value.name))
        outputs.append(out)
    graph.outputs[:] = outputs
    return names


def rounded(model: ir.Model, half: HalfFormat) -> ir.Model:
    """A converted model in float32, each tensor that is half in it rounded to half.

    What a DequantizeLinear hands to a product of two grids is not: that multiplies the integers.
    """
    copy = model.clone()
    for graph, _ in list(graphs(copy.graph)):
        for value in graph.initializers.values():
            if value.dtype is half.type and (array := constant(value)) is not None:
                value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for value in list(graph.inputs):
            if value.dtype is half.type:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                _round(graph, value, None, half)
        for node in list(graph):
            _widen(copy.graph, node, half)
            for value in node.outputs:
                if value.dtype is half.type:
                    _round(graph, value, node, half)
    lower_opset(copy, NEWEST_SAFE)
    return copy


def _widen(graph: ir.Graph, node: ir.Node, half: HalfFormat) -> None:
    """Attributes that say half say float32."""
    if node.op_type == "DequantizeLinear":
        node.attributes.pop("output_dtype", None)
        _add_zero_point(graph, node)
    elif node.op_type != "Cast":
        dtype = node.attributes.get("dtype")
        if dtype is not None and dtype.as_int() == half.type:
            node.attributes["dtype"] = ir.AttrInt64("dtype", int(ir.DataType.FLOAT))
    fill = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
    if fill is not None and fill.as_tensor().dtype is half.type:
        wide = ir.tensor(fill.as_tensor().numpy().astype(np.float32))
        node.attributes["value"] = ir.AttrTensor("value", wide)


def _add_zero_point(graph: ir.Graph, node: ir.Node) -> None:
    """In its exact mode ONNX Runtime (1.32) loads no file in which two int8 grids have none."""
    stored, scale = node.inputs[0], constant(node.inputs[1])
    if stored is None or stored.dtype is not ir.DataType.INT8 or len(node.inputs) > 2:
        return
    if scale is not None:
        zero = add_constant(graph, f"{node.name}_zero", np.zeros(scale.shape, np.int8))
        node.resize_inputs(3)
        node.replace_input_with(2, zero)


def _round(graph: ir.Graph, value: ir.Value, node: ir.Node | None, half: HalfFormat) -> None:
    """Let all readers of a value read it rounded to half."""
    exact = [
        (use.node, use.idx)
        for use in value.uses()
        if node is not None and node.op_type == "DequantizeLinear" and is_integer(use.node)
    ]
    casts = []
    source = value
    if len(exact) == len(list(value.uses())) and not value.is_graph_output():
        # Not even a Cast without readers: ONNX Runtime would copy the grid for it.
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return
    if node is None or node.op_type != "Cast":
        value.type = ir.TensorType(ir.DataType.FLOAT)
        casts.append(ir.node("Cast", [value], {"to": int(half.type)}))
        source = casts[0].outputs[0]
        source.name, source.type = f"{value.name}/quantkit_half", ir.TensorType(half.type)
    casts.append(ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT)}))
    result = casts[-1].outputs[0]
    result.name, result.shape = f"{value.name}/quantkit_rounded", value.shape
    result.type = ir.TensorType(ir.DataType.FLOAT)
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    for cast, before in zip(casts, (value, source)[-len(casts) :], strict=True):
        cast.replace_input_with(0, before)
    for reader, index in exact:
        reader.replace_input_with(index, value)
    if node is not None:
        graph.insert_after(node, casts)
    else:
        graph.insert_before(graph[0], casts)


def compare(reference: Any, other: Any, batches: Iterable[Feed]) -> tuple[OutputParity, ...]:
    """The outputs of one session beside those of another, of the same inputs.

    Raises:
        DataError: one of them cannot run a batch, or their outputs are not of one shape.
    """
    meters = [ParityMeter(value.name) for value in other.get_outputs()]
    for feed in batches:
        wanted, got = run(reference, feed), run(other, feed)
        if [w.shape for w in wanted] != [g.shape for g in got]:
            raise DataError(
                f"the reference puts out {[w.shape for w in wanted]}, the file "
                f"{[g.shape for g in got]}; give the float file that it was made of"
            )
        for meter, want, have in zip(meters, wanted, got, strict=True):
            if want.size:
                meter.update(want, have, have)
    return tuple(meter.result() for meter in meters)


def session(model: ir.Model) -> Any:
    """ONNX Runtime on a model in memory; errors as `open_file`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        return open_file(path)


def open_file(path: Path) -> Any:
    """ONNX Runtime on a file, in its exact mode.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelFileError: it does not load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "ranges and parity are measured by ONNX Runtime, which is not installed; run "
            "`pip install onnxruntime`, or give no data"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelFileError(
            f"ONNX Runtime cannot run the model: {_one_line(error)}; check the file with "
            "onnx.checker, or give no data"
        ) from error


def run(session: Any, feed: Feed) -> list[np.ndarray]:
    """The outputs for one batch.

    Raises:
        DataError: ONNX Runtime cannot run it.
    """
    try:
        results: list[np.ndarray] = session.run(None, dict(feed))
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
        raise DataError(
            f"ONNX Runtime cannot run the model on {shapes}: {_one_line(error)}; check the data "
            "against what the model takes"
        ) from error
    return results


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
