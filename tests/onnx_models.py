"""Small float ONNX models written by hand, for what PyTorch's exporter does not write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of these nodes; inputs and outputs are floats unless ``dtype`` says otherwise."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(n, dtype, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, list(s)) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 19 else 10)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    onnx.save(model, path)
    return path


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers, the same for the same seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 4


def small_net(*, opset: int = 18, batch: int | str = "N") -> onnx.ModelProto:
    """Conv, BatchNorm, ReLU6, a residual, a pool and MatMul; names as PyTorch's old exporter has.

    Takes ``image`` of ``(batch, 16, 8, 8)``, gives ``logits`` of ``(batch, 16)``.
    """
    make = helper.make_node
    bounds = ["zero", "six"]
    nodes = [
        make("Conv", ["image", "stem.conv.weight"], ["a"], "/stem/conv/Conv",
             kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"], "/stem/bn/BatchNormalization"),
        make("Clip", ["n", *bounds], ["r"], "/stem/act/Clip"),
        make("Conv", ["r", "layer1.0.conv1.weight", "layer1.0.conv1.bias"], ["c"],
             "/layer1/layer1.0/conv1/Conv", kernel_shape=[1, 1]),
        make("Add", ["c", "r"], ["s"], "/layer1/layer1.0/Add"),
        make("Relu", ["s"], ["u"], "/layer1/layer1.0/Relu"),
        make("GlobalAveragePool", ["u"], ["p"], "/pool/GlobalAveragePool"),
        make("Flatten", ["p"], ["f"], "/Flatten"),
        make("MatMul", ["f", "onnx::MatMul_40"], ["h"], "/fc/MatMul"),
        make("Add", ["fc.bias", "h"], ["logits"], "/fc/Add"),
    ]  # fmt: skip
    constants = {
        "stem.conv.weight": weight(16, 16, 3, 3),
        "g": 1 + weight(16, seed=1), "b": weight(16, seed=2),
        "m": weight(16, seed=3), "v": 1 + np.abs(weight(16, seed=4)),
        "zero": np.float32(0), "six": np.float32(6),
        "layer1.0.conv1.weight": weight(16, 16, 1, 1, seed=5),
        "layer1.0.conv1.bias": weight(16, seed=6),
        "onnx::MatMul_40": weight(16, 16, seed=7), "fc.bias": weight(16, seed=8),
    }  # fmt: skip
    arrays = {name: np.asarray(array, dtype=np.float32) for name, array in constants.items()}
    return model_of(
        nodes, {"image": [batch, 16, 8, 8]}, {"logits": [batch, 16]}, arrays, opset=opset
    )
