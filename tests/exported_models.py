"""Exported files and what ONNX Runtime makes of them, for the tests of export."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit import numerics
from quantkit.interfaces import ExportForm
from quantkit.model import QuantizedModel
from quantkit.onnx import export
from quantkit.recipe import Recipe
from quantkit.workflow import quantize

Session: TypeAlias = Callable[..., list[Tensor]]

CHANNEL = {"per": "channel"}


def recipe(weights: Any = None, activations: Any = None, **rest: Any) -> Recipe:
    """A recipe of one scheme."""
    scheme = {"weights": weights, "activations": activations}
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **rest})


class Exported:
    """A quantized model and its files in several forms, from one run of torch's exporter."""

    def __init__(self, model: QuantizedModel, folder: Path, forms: Sequence[ExportForm]) -> None:
        self.model = model
        self._sessions: dict[object, Session] = {}
        self.whole = export._export(model)
        self.paths = {form: self.write(folder / f"{form}.onnx", form=form) for form in forms}
        self.protos = {form: onnx.load(path) for form, path in self.paths.items()}

    def write(self, path: Path, **options: Any) -> Path:
        """``export_onnx`` without another run of torch's exporter, which takes most of its time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "_export", lambda _: self.whole.clone())
            return export.export_onnx(self.model, path, **options)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        folder: Path,
        recipe: str | Recipe = "int8_ptq",
        forms: Sequence[ExportForm] = ("tensorrt", "onnxruntime"),
    ) -> Exported:
        """Quantize with the inputs themselves as data, and export."""
        folder.mkdir(parents=True, exist_ok=True)
        quantized = quantize(
            model.eval(), recipe, example_inputs=inputs, calibration=[inputs], cpu="vnni"
        )
        return cls(quantized, folder, forms)

    def simulated(self, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
        """The outputs of the simulation, flat."""
        with torch.no_grad():
            return list(pytree.tree_leaves(self.model(*inputs, **named)))

    def run(self, form: ExportForm, *inputs: Tensor, optimized: bool) -> list[Tensor]:
        """The outputs of ONNX Runtime in its exact mode."""
        key = (form, optimized)
        if key not in self._sessions:
            self._sessions[key] = opened(self.paths[form], optimized=optimized)
        return self._sessions[key](*inputs)


def opened(path: Path, *, optimized: bool = True) -> Session:
    """A file in ONNX Runtime, as a function of its inputs in order.

    Exact: sums of 8-bit products do not saturate, and activations that are float stay so.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(result)) for result in session.run(None, feed)]

    return run


def assert_same(expected: Tensor, found: Tensor, told: object = "") -> None:
    """Results of two runtimes are one, sample by sample.

    Torch multiplies by the reciprocal of a scale and sums in another order, so a tie may be rounded
    the other way: that costs one step, in few samples.
    """
    assert found.shape == expected.shape, told
    each = [numerics.sqnr(a, b) for a, b in zip(expected, found, strict=True)]
    assert statistics.median(each) > 100, (told, each)
    assert min(each) > 30, (told, each)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def operators(proto: onnx.ModelProto) -> list[str]:
    """The operators in order."""
    return [node.op_type for node in proto.graph.node]


def dimensions(proto: onnx.ModelProto) -> dict[str, list[int | str]]:
    """The shapes of the inputs and outputs."""
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
