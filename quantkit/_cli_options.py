"""The arguments and options of the commands, by name, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from quantkit.hardware import named_cpu

#: Sizes and types of inputs, by order and by name.
Shapes: TypeAlias = list[tuple[str | None, tuple[int, ...], str]]

_SHAPE = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+(?:,\d+)*)(?::(\w+))?")
_TYPES = ("float32", "float16", "float64", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


def parse_shapes(texts: Sequence[str]) -> Shapes:
    """Read ``1,3,32,32`` or ``ids=1,128:int64``.

    Example:
        >>> parse_shapes(["1,3,32,32", "ids=1,128:int64"])
        [(None, (1, 3, 32, 32), 'float32'), ('ids', (1, 128), 'int64')]
    """
    shapes: Shapes = []
    for text in texts:
        match = _SHAPE.fullmatch(text.replace(" ", ""))
        if match is None or (match[3] or "float32") not in _TYPES:
            raise typer.BadParameter(
                f"--input-shape {text!r} is no shape: write 1,3,32,32 or ids=1,128:int64, with one "
                f"of {', '.join(_TYPES)}"
            )
        sizes = tuple(int(size) for size in match[2].split(","))
        shapes.append((match[1], sizes, match[3] or "float32"))
    return shapes


def _known_cpu(name: str) -> str:
    """Refuse an unknown kind also where the recipe would not ask for it."""
    if name != "auto":
        named_cpu(name)
    return name


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A .pt2 file, package.module:factory, or a float .onnx file.",
    ),
]
TorchModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", show_default=False, help="A .pt2 file, or package.module:factory."
    ),
]
Onnx = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx", show_default=False, help="The quantized ONNX file.")
]
BuiltOnnx = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL.onnx",
        show_default=False,
        help="The quantized ONNX file; with --calibrator a float one.",
    ),
]
FloatOnnx = Annotated[
    Path,
    typer.Argument(metavar="MODEL.onnx", show_default=False, help="The float ONNX file."),
]
CacheArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CACHE", show_default=False, help="Its calibration cache, as TensorRT wrote it."
    ),
]
RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME|FILE]",
        show_default=False,
        help="A recipe to show, or a YAML file to validate.",
    ),
]
OnnxOutput = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="OUT.onnx", show_default=False, help="The ONNX file to write."
    ),
]
EngineOutput = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="ENGINE", show_default=False, help="The file to deploy."
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE", help="A recipe; quantkit recipes lists them."),
]
CalibrationData = Annotated[
    Path | None, typer.Option("--data", metavar="DATA.yaml", help="Calibration data.")
]
ComparisonData = Annotated[
    Path | None, typer.Option("--data", metavar="DATA.yaml", help="What to compare on.")
]
Statistics = Annotated[
    list[Path] | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="What calibrate wrote, instead of running the data; several are merged.",
    ),
]
StatisticsOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE.safetensors",
        show_default=False,
        help="Write the statistics.",
    ),
]
SaveStatistics = Annotated[
    Path | None,
    typer.Option("--save-statistics", metavar="FILE", help="Write the statistics, as calibrate."),
]
Every = Annotated[
    int,
    typer.Option(
        "--every", metavar="N", min=1, help="Parts of the data between two writes of statistics."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the statistics of a run that was ended.")
]
RoundingCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Write each block that a rounding has learned; if it is there, go on from it.",
    ),
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Show the range and SQNR of each calibrator.")
]
Calibrators = Annotated[
    list[str] | None,
    typer.Option("--calibrator", metavar="NAME", help="Compare these; by default all."),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples", metavar="N", min=0, help="Samples of --data to judge the outputs by."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        "--pictures", metavar="FOLDER", help="Draw each tensor's histogram and thresholds."
    ),
]
Tensors = Annotated[
    list[str] | None,
    typer.Option("--tensor", metavar="GLOB", help="Show or draw these alone; by default all."),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="Weights: .safetensors, or a state_dict of torch.save."
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="SHAPE",
        help="Where no data is needed: 1,3,32,32 or ids=1,128:int64; once for each input.",
    ),
]
Static = Annotated[
    bool, typer.Option("--static", help="Fix every dimension; else the first may vary.")
]
AnyTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="Refuse at once what it cannot run: tensorrt_rtx, onnxruntime.",
    ),
]
OneTarget = Annotated[
    str,
    typer.Option("--target", metavar="NAME", help="Where it is to run: or onnxruntime."),
]
BuildTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        show_default=False,
        help="Where it is to run: tensorrt_rtx (if not told), onnxruntime, tensorrt (if not told, "
        "with --calibrator).",
    ),
]
EngineCalibrator = Annotated[
    str | None,
    typer.Option(
        "--calibrator",
        metavar="NAME",
        help="Let TensorRT calibrate a float file: tensorrt_entropy2, tensorrt_minmax.",
    ),
]
EngineData = Annotated[
    Path | None, typer.Option("--data", metavar="DATA.yaml", help="What the calibrator reads.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        help="The calibration cache: read if it is there, else written.",
    ),
]
CacheOutput = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        help="Write ranges of all tensors of a float ONNX file as TensorRT 10 reads them.",
    ),
]
TensorrtVersion = Annotated[
    str,
    typer.Option("--tensorrt-version", metavar="VERSION", help="Which TensorRT reads the cache."),
]
TrustCache = Annotated[
    bool,
    typer.Option("--trust-cache", help="Take the cache whatever model it was made for."),
]
Buffers = Annotated[
    Literal["torch", "pycuda"] | None,
    typer.Option(
        "--buffers",
        metavar="KIND",
        show_default=False,
        help="Who allocates on the GPU: torch, pycuda.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Write nothing, and exit with 1, if a tensor has no range.")
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="CC|NAME", help="The GPU of the target: 8.6, A40, RTX 4090 …"),
]
Cpu = Annotated[
    str,
    typer.Option(
        "--cpu",
        metavar="KIND",
        callback=_known_cpu,
        help="Processor to deploy to: auto (this), avx2 …",
    ),
]
Form = Annotated[
    Literal["tensorrt", "onnxruntime"] | None,
    typer.Option(
        "--form",
        metavar="FORM",
        show_default=False,
        help="How Q/DQ is written, if not as the target wants: tensorrt, onnxruntime.",
    ),
]
SavePlan = Annotated[
    Path | None,
    typer.Option("--save-plan", metavar="PLAN.json", help="Write what is quantized, and why."),
]
SaveState = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Write parameters and grids, as safetensors."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Compare with it: .pt2, package.module:factory, or a float .onnx.",
    ),
]
MinSqnr = Annotated[
    float | None, typer.Option("--min-sqnr", metavar="DB", help="Fail where an output has less.")
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        "--min-agreement", metavar="SHARE", help="Fail where fewer predictions agree: 0.99."
    ),
]
Layers = Annotated[bool, typer.Option("--layers", help="List every layer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
