"""``quantkit build``: Q/DQ to an engine, or a float file by a calibrator of TensorRT."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit import plugins
from quantkit._cli_show import screen
from quantkit.interfaces import EngineCalibrator, Target

_SIZE = re.compile(r"(\d+)(?:([KMGT])i?B?|B)?", re.IGNORECASE)
_PROFILE = re.compile(r"([^=]+)=(\d+(?:,\d+)*):(\d+(?:,\d+)*):(\d+(?:,\d+)*)")

Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=MIN:BEST:MAX",
        help="Sizes of an input with dynamic dimensions: x=1,3,64,64:8,3,64,64:32,3,64,64.",
    ),
]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", metavar="SIZE", help="GPU memory that a layer may use: 2GiB."),
]
TimingCache = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FILE",
        help="Timings of kernels, to build faster: read if it is there, and written.",
    ),
]
EngineCache = Annotated[
    Path | None,
    typer.Option(
        "--engine-cache",
        metavar="FOLDER",
        help="Engines built before: the same build is done once.",
    ),
]
TrustEngine = Annotated[
    bool,
    typer.Option(
        "--trust-engine", help="Take engines from --engine-cache whoever built them: they are code."
    ),
]

RestPrecision = Annotated[
    Literal["float16", "bfloat16"] | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        show_default=False,
        help="Put the float part of an ONNX file in float16 or bfloat16 first, as half does.",
    ),
]


def parse_profiles(
    texts: Sequence[str],
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Read smallest, best and largest shapes.

    Example:
        >>> parse_profiles(["x=1,3:8,3:32,3"])
        {'x': ((1, 3), (8, 3), (32, 3))}
    """
    profiles = {}
    for text in texts:
        match = _PROFILE.fullmatch(text.replace(" ", ""))
        if match is None:
            raise typer.BadParameter(
                f"--shape {text!r} is no NAME=MIN:BEST:MAX: write x=1,3,64,64:8,3,64,64:32,3,64,64"
            )
        low, best, high = (tuple(map(int, part.split(","))) for part in match.groups()[1:])
        profiles[match[1]] = (low, best, high)
    return profiles


def parse_size(text: str) -> int:
    """Read a number of bytes; units are powers of 1024.

    Example:
        >>> parse_size("512MiB"), parse_size("2g"), parse_size("4096")
        (536870912, 2147483648, 4096)
    """
    match = _SIZE.fullmatch(text.replace(" ", ""))
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"--workspace {text!r} is no size: write 512MiB, 2GiB or bytes")
    return int(match[1]) << 10 * " KMGT".index((match[2] or " ").upper())


@dataclass(frozen=True, kw_only=True)
class Building:
    """The options of the build itself, ``None`` where they were not given."""

    shape: list[str] | None
    workspace: str | None
    timing_cache: Path | None
    engine_cache: Path | None
    trust_engine: bool

    def check(self) -> None:
        """Refuse, before any work, what means nothing, or could not be written."""
        trusts: dict[str, object] = {"--trust-engine": self.trust_engine or None}
        work.require_together({"--engine-cache": self.engine_cache}, trusts)
        if self.timing_cache is not None:
            work.require_writable(self.timing_cache)

    def options(self, target: str) -> dict[str, object]:
        """Those that were given, as the target takes them; it must have them all."""
        known = inspect.signature(plugins.find("targets", target, Target)).parameters
        flags: dict[str, tuple[str, object]] = {
            "shapes": ("--shape", parse_profiles(self.shape or ()) or None),
            "workspace": ("--workspace", self.workspace and parse_size(self.workspace)),
            "timing_cache": ("--timing-cache", self.timing_cache),
            "engine_cache": ("--engine-cache", self.engine_cache),
            "trust_engine": ("--trust-engine", self.trust_engine or None),
        }
        given = {name: value for name, (_, value) in flags.items() if value is not None}
        for name in given:
            if name not in known:
                raise work.UsageError(
                    f"the target {target} takes no {flags[name][0]}: leave it out, or give "
                    "--target tensorrt"
                )
        return given


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The options of a calibrator, ``None`` where they were not given."""

    calibrator: str | None
    data: Path | None
    cache: Path | None
    trust_cache: bool
    buffers: str | None

    def check(self) -> None:
        """Refuse, before any work, what means nothing."""
        others = {"--data": self.data, "--cache": self.cache, "--buffers": self.buffers}
        trusts: dict[str, object] = {"--trust-cache": self.trust_cache or None}
        work.require_together({"--calibrator": self.calibrator}, {**others, **trusts})
        work.require_together({"--cache": self.cache}, trusts)
        if self.calibrator is not None and self.data is None and self.cache is None:
            raise work.UsageError(
                "--calibrator needs --data DATA.yaml, or the --cache that was made from it"
            )


def command(
    model: option.BuiltOnnx,
    output: option.EngineOutput,
    target: option.BuildTarget = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    calibrator: option.EngineCalibrator = None,
    data: option.EngineData = None,
    cache: option.Cache = None,
    trust_cache: option.TrustCache = False,
    buffers: option.Buffers = None,
    shape: Profiles = None,
    workspace: Workspace = None,
    timing_cache: TimingCache = None,
    engine_cache: EngineCache = None,
    trust_engine: TrustEngine = False,
    precision: RestPrecision = None,
    layers: option.Layers = False,
    as_json: option.Json = False,
) -> None:
    """Build what the target deploys, and tell how each layer runs.

    A float file can be calibrated by TensorRT 8.5 to 10 itself, with --calibrator.

    \b
    Examples:
      quantkit build net.onnx -o net.engine --gpu 8.6
      quantkit build net.onnx -o net.engine --gpu A40 --precision float16 --layers
      quantkit build net.onnx -o net.engine --gpu 8.6 --shape x=1,3,8,8:4,3,8,8:8,3,8,8
      quantkit build cpu.onnx -o cpu.ort.onnx --target onnxruntime
      quantkit build float.onnx -o net.engine --calibrator tensorrt_entropy2 --data calib.yaml
    """  # noqa: D301
    asked = Calibration(
        calibrator=calibrator, data=data, cache=cache, trust_cache=trust_cache, buffers=buffers
    )
    built_with = Building(
        shape=shape,
        workspace=workspace,
        timing_cache=timing_cache,
        engine_cache=engine_cache,
        trust_engine=trust_engine,
    )
    with screen(as_json) as show:
        place = _place(model, target, gpu, cpu, asked, built_with)
        work.require_file(model)
        work.require_writable(output)
        from quantkit import building

        built = building.build(model, output, place, precision=precision)
        show.built(built, output, output.stat().st_size, every_layer=layers)


def _place(
    model: Path,
    name: str | None,
    gpu: str | None,
    cpu: str,
    asked: Calibration,
    built_with: Building,
) -> Target:
    """The target that is named; with a calibrator, and no name, it is ``tensorrt``.

    Raises:
        TargetError: the target has no calibrators.
        DataError: the data do not fit the file's inputs.
    """
    asked.check()
    built_with.check()
    if asked.calibrator is None:
        name = name or "tensorrt_rtx"
        return work.make_target(name, gpu, cpu, **built_with.options(name))
    calibrator = plugins.find("calibrators", asked.calibrator, EngineCalibrator)()
    name = name or "tensorrt"
    if "calibrator" not in inspect.signature(plugins.find("targets", name, Target)).parameters:
        from quantkit.tensorrt.sdk import calibrator_gone

        raise calibrator_gone(calibrator, f"the target {name}")
    work.require_file(model)
    if asked.cache is not None:
        work.require_writable(asked.cache)
    return work.make_target(
        name,
        gpu,
        cpu,
        calibrator=calibrator,
        data=None if asked.data is None else models.open_data(asked.data, model),
        cache=asked.cache,
        trust_cache=asked.trust_cache,
        buffers=asked.buffers or "torch",
        **built_with.options(name),
    )
