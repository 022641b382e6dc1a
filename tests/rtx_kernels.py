"""How many kernels the TensorRT-RTX builder makes of a quantized model."""

from __future__ import annotations

from pathlib import Path

from quantkit.model import QuantizedModel
from quantkit.onnx.export import export_onnx
from quantkit.targets.tensorrt_rtx import TensorRTRTX


def kernels_of(model: QuantizedModel, folder: Path) -> int:
    """How many kernels compute; every planned layer runs in INT8, which is asserted."""
    from quantkit.targets import _rtx_layers
    from quantkit.targets._engine_coverage import coverage
    from quantkit.targets._engine_source import Source, read_source

    source = read_source(export_onnx(model, folder / "model.onnx", form="tensorrt"))
    assert isinstance(source, Source)
    outcome = TensorRTRTX(progress=False)._built(source, folder / "engine")
    kernels = _rtx_layers.parse_layers(outcome.layers)
    layers, _ = coverage(source.reader, kernels, built=outcome.built, own=lambda node: None)
    assert {layer.precision for layer in layers if layer.quantized} == {"int8"}
    assert sum(layer.quantized for layer in layers) == len(model.plan.quantized)
    return sum(k.layer_type not in {"shape_call", "signal", "wait"} for k in kernels)
