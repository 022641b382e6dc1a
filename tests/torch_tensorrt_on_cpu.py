"""The real Torch-TensorRT on a machine without a GPU, as far as it goes: up to a built engine.

Run as a program with the folder of its wheel, a scratch folder, a file for the answers, and names
of scenarios. The wheel's Python is real, and so is the builder: TensorRT-RTX, which needs no GPU,
in place of TensorRT (the wheel has code for both). What is not real is said in `pretend`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import metadata
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

#: The compute capability that engines are built for, where a scenario names no other.
CAPABILITY = "SM86"
#: The engines, in the order in which they were built.
BUILT: list[bytes] = []


def pretend(wheel: Path, folder: Path) -> None:
    """Make the wheel importable: without its C++, and with answers of a GPU that is not there."""
    package = folder / "torch_tensorrt"
    package.mkdir()
    for entry in (wheel / "torch_tensorrt").iterdir():
        if not entry.name.startswith(("lib", "bin", "include", "_C.")):
            (package / entry.name).symlink_to(entry)
    sys.path.insert(0, str(folder))
    loaded = ModuleType("dllist")  # names loaded libraries; a small package of its own
    loaded.dllist = list  # type: ignore[attr-defined]
    sys.modules["dllist"] = loaded
    # By the name of its package it decides which TensorRT it takes.
    named = {"torch_tensorrt": ["torch-tensorrt-rtx"]}
    metadata.packages_distributions = lambda: named  # type: ignore[assignment]
    properties = SimpleNamespace(major=8, minor=6, name="none", total_memory=1 << 34)
    cuda: Any = torch.cuda
    cuda.current_device = lambda: 0
    cuda.get_device_capability = lambda *_: (8, 6)
    cuda.get_device_properties = lambda *_: properties
    cuda.mem_get_info = lambda *_: (1 << 33, 1 << 34)
    cuda.default_stream = lambda *_: None
    torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})  # type: ignore[misc]


def replace_the_gpu() -> None:
    """After the import: tensors stay on the CPU, engines are built and not loaded."""
    import tensorrt as trt
    import torch_tensorrt.dynamo._compiler as compiler
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter
    from torch_tensorrt.dynamo.runtime import _TRTEngine as runtime

    from quantkit.targets import _torch_tensorrt_compile, _torch_tensorrt_files
    from quantkit.targets import _torch_tensorrt_sdk as sdk

    compiler.to_torch_device = lambda _: torch.device("cpu")
    interpreter.TRT_LOGGER = make_logger(trt)
    interpreter.TRTInterpreter.run = build_engine
    runtime.TRTEngine._setup_engine = lambda _: None
    sdk.absence = lambda: None
    _torch_tensorrt_compile.DEVICE = _torch_tensorrt_files.DEVICE = "cpu"


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.said.append(message)

    return Logger()


def build_engine(self: Any) -> Any:
    """`TRTInterpreter.run` without loading the engine, for a GPU that is named."""
    import tensorrt as trt
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    self._construct_trt_network_def()
    config = self._populate_trt_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    interpreter.TRT_LOGGER.said.clear()
    engine = self.builder.build_serialized_network(self.ctx.net, config)
    if engine is None:
        raise RuntimeError(f"not built: {interpreter.TRT_LOGGER.said[-1]}")
    data = bytes(engine)
    BUILT.append(data)
    self.ctx.clear_cpu_weights_reference_holder()
    return interpreter.TRTInterpreterResult(
        SimpleNamespace(serialize=lambda: data), self._input_names, self._output_names, False, False
    )


def kernels() -> list[list[object]]:
    """Of each product in the engine that was built last: type, datatype of input and weights."""
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    told = next(m for m in interpreter.TRT_LOGGER.said if m.startswith("Layers:"))
    found: list[list[object]] = []
    for line in told.splitlines():
        kind = re.search(r"LayerType: (correlation|gemm|runtime_fusion),", line)
        parts = re.search(r"Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: ", line)
        if kind and parts:
            inputs, constants = (re.findall(r"Datatype: (\w+)", part) for part in parts.groups())
            found.append([kind[1], inputs[0], sorted(set(constants) - {"Float"})])
    return found


def holds_weights(engine: bytes) -> list[bool]:
    """Whether the integers of each convolution lie in an engine, byte for byte."""
    from quantkit import numerics

    found = []
    for layer in quantized("resnet").layers():
        weight, quantizer = layer.weight_source, layer.weight
        values = quantized("resnet").graph.get_parameter(str(weight.target))
        codes = numerics.quantize(values, quantizer.qparams, reciprocal=True)
        if codes.dim() == 4 and codes.shape[1] % 16 == 0:  # kernels read channels innermost
            found.append(codes.permute(0, 2, 3, 1).contiguous().numpy().tobytes() in engine)
    return found


def profile() -> list[str]:
    """The smallest, best and largest shape of the first input of that engine."""
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    told = next(m for m in interpreter.TRT_LOGGER.said if m.startswith("Layers:"))
    return re.findall(r"(?:Min|Opt|Max)Shape: \[([\d,]+)\]", told)[:3]


# Models


class Quantizer(nn.Module):
    def __init__(self, shape: tuple[int, ...] = (), **spec: Any) -> None:
        super().__init__()
        from quantkit.operators import spec_arguments
        from quantkit.spec import QuantSpec

        self.register_buffer("scale", torch.rand(shape) * 0.01 + 0.01)
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.spec = spec_arguments(QuantSpec(**spec))

    def forward(self, x: Tensor) -> Tensor:
        from quantkit.operators import OPERATOR

        y: Tensor = OPERATOR(x, self.scale, self.zero_point, *self.spec)
        return y


class TwoConvolutions(nn.Module):
    """Quantized by hand."""

    def __init__(self, weights: dict[str, Any], activations: dict[str, Any] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        shape = () if weights.get("axis") is None else (16,)
        self.weights = nn.ModuleList(Quantizer(shape, **weights) for _ in range(2))
        self.inputs = nn.ModuleList(
            nn.Identity() if activations is None else Quantizer(**activations) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv, weight, quantize in zip(self.convs, self.weights, self.inputs, strict=True):
            x = torch.conv2d(quantize(x), weight(conv.weight), conv.bias, padding=1).relu()
        return x


class Linear(nn.Module):
    """A product with weights on a grid."""

    def __init__(self, shape: tuple[int, ...], **weights: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.weight = nn.Linear(64, 64), Quantizer(shape, **weights)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight(self.linear.weight), self.linear.bias)


class AtenFakeQuantize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(self.first(x).relu(), 0.05, 0, -128, 127)
        return self.second(x).relu()


def export(model: nn.Module, *args: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), args)


@cache
def quantized(name: str, recipe: str = "int8_ptq") -> Any:
    import quantkit
    import small_models

    model = getattr(small_models, name)()
    return quantkit.quantize(model, recipe, calibration=[model.inputs(4)[0]])


def images() -> Tensor:
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


# Scenarios


def lists() -> object:
    import dataclasses

    from torch_tensorrt.dynamo import CompilationSettings
    from torch_tensorrt.dynamo.conversion import DYNAMO_ATEN_CONVERTERS
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import ConverterRegistry
    from torch_tensorrt.dynamo.lowering import get_decompositions

    from quantkit.operators import OPERATOR

    name = ConverterRegistry.qualified_name_or_str
    converted = [name(key) for key in DYNAMO_ATEN_CONVERTERS if key is not OPERATOR]
    theirs, ours = get_decompositions(False, False, False), torch.export.default_decompositions()
    return {
        "version": sys.modules["torch_tensorrt"].__version__,
        "settings": [field.name for field in dataclasses.fields(CompilationSettings)],
        "converted": sorted(full.removeprefix("torch.ops.") for full in converted),
        "kept": sorted(str(key) for key in ours if key not in theirs),
        "rewritten": sorted(str(key) for key in theirs if key not in ours),
    }


def folding() -> object:
    """How many quantizers are left by the folder of constants, unprotected and protected."""
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.lowering.passes.constant_folding import constant_fold

    from quantkit.operators import is_call
    from quantkit.targets._torch_tensorrt_converter import register

    model = TwoConvolutions({"axis": 0}, {})

    def left() -> int:
        module = export(model, images()).module()
        folded = constant_fold(module, CompilationSettings())
        return sum(is_call(node) for node in folded.graph.nodes)

    unprotected = left()
    register()
    protected = left()
    register()
    return {"unprotected": unprotected, "protected": protected, "again": left()}


def splits() -> object:
    from quantkit.targets._torch_tensorrt_dryrun import dry_run
    from quantkit.targets.torch_tensorrt import TorchTensorRT

    target = TorchTensorRT(min_block_size=1)
    program = export(AtenFakeQuantize(), torch.randn(2, 32))
    shared = dry_run(sys.modules["torch_tensorrt"], program, target.settings)
    return {
        "engines": shared.engines,
        "unsupported": shared.unsupported,
        "findings": [str(finding) for finding in shared.findings()],
    }


def ignores() -> object:
    """Whether a misspelt name is told by Torch-TensorRT itself."""
    import torch_tensorrt

    program = export(nn.Linear(8, 8), torch.randn(2, 8))
    with redirect_stdout(StringIO()) as told, warnings.catch_warnings(record=True) as warned:
        torch_tensorrt.dynamo.compile(
            program, arg_inputs=program.example_inputs[0], dryrun=True, min_blok_size=1
        )
    return {"told": "min_blok_size" in told.getvalue(), "warned": len(warned)}


def shares() -> object:
    """The dry run and quantkit's rules, on the same programs."""
    from quantkit.targets import _torch_tensorrt_rules as rules
    from quantkit.targets._torch_tensorrt_converter import register
    from quantkit.targets._torch_tensorrt_dryrun import dry_run
    from quantkit.targets._torch_tensorrt_program import program_of
    from quantkit.targets.torch_tensorrt import TorchTensorRT

    register()
    programs = {"encoder": program_of(quantized("encoder"))}
    programs["aten"] = export(AtenFakeQuantize(), torch.randn(2, 32))
    told: dict[str, object] = {}
    for name, program in programs.items():
        target = TorchTensorRT(min_block_size=2)
        real = dry_run(sys.modules["torch_tensorrt"], program, target.settings)
        ours = rules.share_out(program, smallest=2)
        told[name] = [
            {
                "engines": shared.engines,
                "unsupported": shared.unsupported,
                "layers": [[layer.op_type, layer.precision] for layer in shared.layers()],
                "crossing": shared.crossing,
            }
            for shared in (real, ours)
        ]
    return told


def formats() -> object:
    """The kernels of small networks, by what they are quantized to."""
    global CAPABILITY
    from quantkit.targets._torch_tensorrt_converter import register
    from quantkit.targets._torch_tensorrt_dryrun import compile_program
    from quantkit.targets.torch_tensorrt import TorchTensorRT

    register()
    settings = TorchTensorRT(min_block_size=1).settings
    fp8 = {"dtype": "fp8_e4m3"}
    weights_alone = nn.Sequential(
        Linear((64,), axis=0), nn.ReLU(), Linear((64, 2), dtype="int4", axis=1, group_size=32)
    )
    cases = {
        "4 bits": (TwoConvolutions({"axis": 0, "bits": 4}, {"bits": 4}), images(), "SM86"),
        "fp8": (TwoConvolutions(fp8 | {"axis": 0}, fp8), images(), "SM89"),
        "weights alone": (weights_alone, torch.randn(16, 64), "SM86"),
        "fp8 on SM86": (TwoConvolutions(fp8, fp8), images(), "SM86"),
    }
    told: dict[str, object] = {}
    for name, (model, x, capability) in cases.items():
        CAPABILITY = capability
        try:
            compile_program(sys.modules["torch_tensorrt"], export(model, x), settings)
            told[name] = kernels()
        except Exception as error:
            told[name] = str(error)
    CAPABILITY = "SM86"
    return told


def files() -> object:
    """A program is built into a file, and what comes of loading it."""
    import quantkit.targets._torch_tensorrt_files as module
    from quantkit.errors import TargetError
    from quantkit.program.writing import export_pt2
    from quantkit.targets.torch_tensorrt import TorchTensorRT

    folder = Path(sys.argv[2])
    model, output = folder / "model.pt2", folder / "compiled.pt2"
    export_pt2(quantized("resnet"), model, form="tensorrt")
    target = TorchTensorRT(shapes={"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))})
    inspection = target.build(model, output)
    told: dict[str, object] = {
        "target": inspection.target,
        "layers": [[layer.op_type, layer.precision] for layer in inspection.layers],
        "findings": [str(finding) for finding in inspection.findings],
        "kernels": kernels(),
        "profile": profile(),
        "weights": holds_weights(BUILT[-1]),
        "holds": [module.holds_engines(model), module.holds_engines(output)],
        "left": sorted(file.name for file in folder.iterdir() if file.is_file()),
    }
    program = module.load_compiled(output, trusted=False)
    told["calls"] = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    told["inputs"] = module.input_names(program)
    call, spec = program.module(check_guards=False), program.call_spec.in_spec
    for size in (1, 4, 5):
        batch = {"x": torch.zeros(size, 3, 16, 16).numpy()}
        try:
            module.run_batches(call, module.input_names(program), [batch], spec)
        except TargetError as error:
            told[f"batch of {size}"] = str(error)
    try:
        TorchTensorRT().compiled_ahead(quantized("mlp"))(torch.zeros(2, 32))
    except AssertionError as error:  # of torch, where a GPU is asked for
        told["ahead"] = str(error)
    data = output.read_bytes()
    output.write_bytes(data + b" ")
    try:
        module.load_compiled(output, trusted=False)
    except TargetError as error:
        told["refused"] = str(error)
    return told


def just_in_time() -> object:
    """What the engine reads of a model under ``torch.compile``."""
    from torch_tensorrt.dynamo.backend import backends

    from quantkit.targets.torch_tensorrt import TorchTensorRT

    seen: list[dict[str, object]] = []
    real = backends.compile_module

    def spy(graph: Any, inputs: Any, **rest: Any) -> Any:
        compiled = real(graph, inputs, **rest)
        names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        engines = [name for name, _ in compiled.named_children()]
        seen.append({"inputs": len(names), "engines": engines, "kernels": kernels()})
        return graph  # which runs here

    backends.compile_module = spy
    model = quantized("resnet")
    x = model.capture.args[0]
    with torch.no_grad():
        near = torch.allclose(TorchTensorRT().compiled(model)(x), model(x), atol=1e-5)
    return {"seen": seen, "near": near}


@contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with redirect_stdout(sys.stderr):
        yield


def main(wheel: Path, folder: Path, answers: Path, scenarios: list[str]) -> None:
    torch.set_num_threads(1)
    told: dict[str, object] = {}
    with quiet():
        mirror = folder / "mirror"
        mirror.mkdir()
        pretend(wheel, mirror)
        import torch_tensorrt  # noqa: F401

        replace_the_gpu()
        for name in scenarios:
            scenario: Callable[[], object] = globals()[name]
            try:
                told[name] = scenario()
            except Exception:
                told[name] = {"error": traceback.format_exc()}
    answers.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    _, first, second, third, *rest = sys.argv
    main(Path(first), Path(second), Path(third), rest)
