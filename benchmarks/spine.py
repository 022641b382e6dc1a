"""Measure the whole way on the real models: accuracy, parity, coverage, speed, cost.

Each function measures one thing and returns plain values for JSON; ``benchmarks.run`` calls them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quantkit
from benchmarks.machine import peak_mb
from benchmarks.zoo import MINILM, RESNET20, BenchModel, tokenize
from quantkit import numerics
from quantkit.model import QuantizedModel
from quantkit.onnx.export import export_onnx
from quantkit.recipe import Recipe
from quantkit.targets.onnxruntime import OnnxRuntime, latency, medians
from quantkit.targets.tensorrt_rtx import TensorRTRTX

#: Images or sentences a calibration batch; quantkit splits them, so the size changes no grid.
CALIBRATION_BATCH = 32
BATCH = 50


def quantized(
    model: BenchModel, recipe: str | Recipe, float_model: torch.nn.Module
) -> QuantizedModel:
    """The model under a recipe, calibrated on its calibration set."""
    return quantkit.quantize(
        float_model,
        recipe,
        example_inputs=model.example(),
        calibration=model.calibration(CALIBRATION_BATCH),
        dynamic_shapes=model.dynamic_shapes,
    )


def export_float(model: BenchModel, module: torch.nn.Module, path: Path) -> Path:
    """The float model as ONNX, by the same exporter and opset."""
    program = torch.export.export(module, model.example(), dynamic_shapes=model.dynamic_shapes)
    exported = torch.onnx.export(program, (), dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    exported.save(path, external_data=False)
    return path


def accuracy(
    model: BenchModel,
    module: torch.nn.Module,
    qmodel: QuantizedModel,
    path: Path,
    limit: int | None,
) -> dict[str, Any]:
    """Float, simulated and deployed (ONNX Runtime, exact and default) on the same samples."""
    runs: dict[str, Callable[..., Tensor]] = {
        "float": module,
        "simulated": qmodel,
        "exact": deployed(path, exact=True),
        "default": deployed(path, exact=False),
    }
    outputs: dict[str, list[Tensor]] = {name: [] for name in runs}
    labels = []
    with torch.inference_mode():
        for inputs, batch_labels in model.evaluation(BATCH, limit):
            labels.append(batch_labels)
            for name, run in runs.items():
                outputs[name].append(run(*inputs))
    whole = {name: torch.cat(parts) for name, parts in outputs.items()}
    gold = torch.cat(labels)
    same = (whole["simulated"].argmax(1) == whole["exact"].argmax(1)).double().mean()
    return {
        "samples": len(gold),
        "points": {name: model.metric(values, gold) for name, values in whole.items()},
        "sqnr_db": {n: decibels(whole["float"], v) for n, v in whole.items() if n != "float"},
        "parity_db": decibels(whole["simulated"], whole["exact"]),
        "agreement_percent": None if model is MINILM else 100.0 * float(same),
        "finite": bool(torch.isfinite(whole["exact"]).all()),
    }


def deployed(path: Path, *, exact: bool) -> Callable[..., Tensor]:
    """An ONNX file as a function of tensors, in ONNX Runtime."""
    import onnx

    run = OnnxRuntime(exact=exact, threads=2).opened(path)
    names = [i.name for i in onnx.load(path, load_external_data=False).graph.input]

    def call(*inputs: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(np.array(run(feed)[0]))

    return call


def coverage(path: Path, gpu: str = "8.6") -> dict[str, Any]:
    """What the TensorRT-RTX builder runs in INT8 of the file's layers, and why not the rest."""
    profile = ((1, 16), (8, 64), (32, 256))
    shapes = {"input_ids": profile, "attention_mask": profile}
    target = TensorRTRTX(
        compute_capability=gpu, progress=False, shapes=shapes if "minilm" in path.name else None
    )
    inspection = target.inspect(path)
    return {
        "target": inspection.target,
        "layers": len(inspection.layers),
        "planned": inspection.planned,
        "covered": inspection.covered,
        "seconds": inspection.seconds,
        "float": {x.node: x.reason for x in inspection.layers if not x.quantized},
        "surprises": {
            x.node: x.reason
            for x in inspection.layers
            if x.quantized and x.precision.startswith(("float", "bf", "none"))
        },
        "findings": [str(f) for f in inspection.findings],
    }


def speed(model: BenchModel, float_path: Path, path: Path, *, threads: int = 2) -> dict[str, Any]:
    """How many times as fast as float the file is in ONNX Runtime's default mode, interleaved."""
    results = {}
    for batch, repeats in ((1, 60), (32, 15)):
        feed = _feed(model, batch)
        times = latency({"float": float_path, "int8": path}, feed, repeats=repeats, threads=threads)
        middle = medians(times)
        results[str(batch)] = {
            "float_ms": middle["float"],
            "int8_ms": middle["int8"],
            "ratio": middle["float"] / middle["int8"],
        }
    return results


def cost(images: int, out: Path) -> dict[str, Any]:
    """Seconds after imports, and peak memory, of quantizing and exporting ResNet-20.

    Run it in a fresh process: the peak is the process's.
    """
    module = RESNET20.load()
    before = peak_mb()
    start = time.perf_counter()
    qmodel = quantkit.quantize(
        module, "int8_ptq", example_inputs=RESNET20.example(), calibration=_images(images)
    )
    calibrated = time.perf_counter()
    export_onnx(qmodel, out / "cost.onnx")
    end = time.perf_counter()
    return {
        "images": images,
        "quantize_s": calibrated - start,
        "export_s": end - calibrated,
        "total_s": end - start,
        "peak_mb": peak_mb(),
        "before_mb": before,
    }


def _images(count: int) -> Iterator[tuple[Tensor, ...]]:
    """So many images, batch by batch, over and over the 512 that there are."""
    given = 0
    while True:
        for (batch,) in RESNET20.calibration(CALIBRATION_BATCH):
            yield (batch[: count - given],)
            given += len(batch)
            if given >= count:
                return


def _feed(model: BenchModel, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    if model is MINILM:
        sentence = "A man is playing a large flute while a dog sleeps under the old table."
        ids, mask = tokenize([sentence] * batch)
        return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    (example,) = model.example()
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn((batch, *example.shape[1:]), generator=generator).numpy()}


def decibels(reference: Tensor, other: Tensor) -> float | None:
    """SQNR in dB; ``None`` stands for equal in every bit (JSON has no infinity)."""
    value = numerics.sqnr(reference, other)
    return None if value == float("inf") else value
