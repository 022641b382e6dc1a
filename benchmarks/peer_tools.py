"""How each tool of ``benchmarks.peers`` is called: float model in, quantized file (or outputs) out.

Each function takes a `Job` and is run in a process of its own, by the Python that has the tool; so
a tool is imported in its function alone. Settings are those that the tool's own guide recommends
for INT8 of weights and activations; where it has none to recommend, its defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import spine
from benchmarks.networks import SameConv
from benchmarks.zoo import MINILM, BenchModel

Feed = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one tool.

    Attributes:
        model: what is quantized, with its calibration data.
        module: the float model in PyTorch.
        float_file: the same as ONNX.
        output: the ONNX file to write, or for a tool that writes none an ``.npy`` of the outputs
            on the evaluation data.
        setting: the tool's own setting that the row is about, such as a calibrator.
        limit: so many samples are evaluated.
    """

    model: BenchModel
    module: Any
    float_file: Path
    output: Path
    setting: str
    limit: int | None = None

    def feeds(self) -> Iterator[Feed]:
        """The calibration data as ONNX takes it: a batch of 32 a feed."""
        import onnx

        inputs = onnx.load(self.float_file, load_external_data=False).graph.input
        names = [value.name for value in inputs]
        for batch in self.model.calibration(spine.CALIBRATION_BATCH):
            yield {name: x.numpy() for name, x in zip(names, batch, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool and the rows that it is measured with.

    Attributes:
        package: what pip calls it; its version is that of the row.
        settings: a row each.
        run: does a job; what it returns is called when the cost has been taken.
        venv: the folder, under ``--venvs``, of the Python that has it; ``None``: this one.
        simulated: it writes no file that ONNX Runtime reads, so PyTorch's simulation is judged.
    """

    package: str
    settings: tuple[str, ...]
    run: Callable[[Job], Callable[[], None] | None]
    venv: str | None = None
    simulated: bool = False

    @property
    def version(self) -> str:
        """As the Python that runs has it."""
        return version(self.package)


def _quantkit(job: Job) -> None:
    from quantkit.onnx.export import export_onnx

    qmodel = spine.quantized(job.model, job.setting, job.module)
    export_onnx(qmodel, job.output)


def _onnxruntime(job: Job) -> None:
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            # Its histograms want one length of all sentences.
            self.feeds = iter(_one_length(list(job.feeds())))

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    prepared = job.output.with_suffix(".prepared.onnx")
    # It fails to infer the shapes of a dynamic sequence symbolically.
    dynamic = job.model is MINILM
    quant_pre_process(str(job.float_file), str(prepared), skip_symbolic_shape=dynamic)
    methods = {
        "min-max": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
        "percentile": ort.CalibrationMethod.Percentile,
    }
    ort.quantize_static(
        str(prepared), str(job.output), Reader(), quant_format=ort.QuantFormat.QDQ,
        per_channel=True, activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
        calibrate_method=methods[job.setting],
    )  # fmt: skip


def _nncf(job: Job) -> None:
    import nncf
    import onnx

    feeds = list(job.feeds())
    quantized = nncf.quantize(
        onnx.load(job.float_file),
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(job.setting),
        model_type=nncf.ModelType.TRANSFORMER if job.model is MINILM else None,
        subset_size=len(feeds),
    )
    onnx.save(quantized, job.output)


def _modelopt(job: Job) -> None:
    from modelopt.onnx.quantization import quantize

    feeds = _one_length(list(job.feeds()))
    whole = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    shapes = ",".join(
        f"{name}:{'x'.join(map(str, (1, *value.shape[1:])))}" for name, value in whole.items()
    )
    quantize(
        str(job.float_file), quantize_mode="int8", calibration_data=whole,
        calibration_method=job.setting, calibration_eps=["cpu"], calibration_shapes=shapes,
        high_precision_dtype="fp32", output_path=str(job.output),
    )  # fmt: skip


def _torchao(job: Job) -> Callable[[], None]:
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    program = torch.export.export(
        _plain(job.module), job.model.example(), dynamic_shapes=job.model.dynamic_shapes
    )
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.inference_mode():
        for batch in job.model.calibration(spine.CALIBRATION_BATCH):
            prepared(*batch)
    converted = move_exported_model_to_eval(convert_pt2e(prepared))
    return lambda: _evaluate(job, converted)


def _neural_compressor(job: Job) -> Callable[[], None]:
    import torch
    from neural_compressor.torch import export, quantization

    program = export.export(
        _plain(job.module), job.model.example(), dynamic_shapes=job.model.dynamic_shapes
    )
    prepared = quantization.prepare(program, quantization.get_default_static_config())
    with torch.inference_mode():
        for batch in job.model.calibration(spine.CALIBRATION_BATCH):
            prepared(*batch)
    converted = quantization.convert(prepared)
    return lambda: _evaluate(job, converted)


def _plain(module: Any) -> Any:
    """The model with ``nn.Conv2d`` for its own subclass: PT2E's quantizers look for that class."""
    from torch import nn

    for name, child in module.named_children():
        if isinstance(child, SameConv):
            conv = nn.Conv2d(
                child.in_channels, child.out_channels, child.kernel_size, child.stride,
                child.padding, groups=child.groups, bias=False,
            )  # fmt: skip
            conv.weight = child.weight
            pad = [] if child.uneven is None else [nn.ZeroPad2d(child.uneven)]
            setattr(module, name, nn.Sequential(*pad, conv) if pad else conv)
        else:
            _plain(child)
    return module.eval()


def _quantized_layers(graph: Any) -> dict[str, int]:
    """Of convolutions and products with weights, those whose two inputs are dequantized."""
    layers = [n for n in graph.nodes if str(n.target).startswith(("aten.conv", "aten.linear"))]
    both = [
        n for n in layers if all("dequant" in str(getattr(a, "target", "")) for a in n.args[:2])
    ]
    return {"layers": len(layers), "quantized": len(both)}


def _evaluate(job: Job, converted: Callable[..., Any]) -> None:
    """Save what the simulation puts out on the evaluation data."""
    import torch

    with torch.inference_mode():
        batches = job.model.evaluation(spine.BATCH, job.limit)
        outputs = [converted(*inputs) for inputs, _ in batches]
    np.save(job.output.with_suffix(".npy"), torch.cat(outputs).float().numpy())
    counts = _quantized_layers(converted.graph)
    job.output.with_suffix(".json").write_text(json.dumps(counts), encoding="utf-8")


def _one_length(feeds: list[Feed]) -> list[Feed]:
    """Sentences with padding up to the longest, for tools that put batches together."""
    if "input_ids" not in feeds[0]:
        return feeds
    longest = max(feed["input_ids"].shape[1] for feed in feeds)
    return [
        {name: np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for name, x in feed.items()}
        for feed in feeds
    ]


TOOLS: dict[str, Tool] = {
    "quantkit": Tool(
        package="quantkit", settings=("int8_ptq", "int8_cpu", "int8_accurate"), run=_quantkit
    ),
    "ONNX Runtime": Tool(
        package="onnxruntime", settings=("min-max", "entropy", "percentile"), run=_onnxruntime
    ),
    "NNCF": Tool(package="nncf", settings=("performance", "mixed"), run=_nncf, venv="nncf"),
    "ModelOpt (ONNX)": Tool(
        package="nvidia-modelopt", settings=("max", "entropy"), run=_modelopt, venv="modelopt"
    ),
    "torchao (PT2E)": Tool(
        package="torchao", settings=("x86",), run=_torchao, venv="torchao", simulated=True
    ),
    "neural-compressor (PyTorch)": Tool(
        package="neural-compressor",
        settings=("static",),
        run=_neural_compressor,
        venv="inc",
        simulated=True,
    ),
}
