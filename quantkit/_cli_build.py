"""``quantkit build``: Q/DQ to an engine, or a float file by a calibrator of TensorRT."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from quantkit import _cli_model as models
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit import plugins
from quantkit._cli_show import screen
from quantkit.interfaces import EngineCalibrator, Target


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
    layers: option.Layers = False,
    as_json: option.Json = False,
) -> None:
    """Build what the target deploys, and tell how each layer runs.

    A float file can be calibrated by TensorRT 8.5 to 10 itself, with --calibrator.

    \b
    Examples:
      quantkit build net.onnx -o net.engine --gpu 8.6
      quantkit build net.onnx -o net.engine --gpu A40 --layers
      quantkit build cpu.onnx -o cpu.ort.onnx --target onnxruntime
      quantkit build float.onnx -o net.engine --calibrator tensorrt_entropy2 --data calib.yaml
    """  # noqa: D301
    asked = Calibration(
        calibrator=calibrator, data=data, cache=cache, trust_cache=trust_cache, buffers=buffers
    )
    with screen(as_json) as show:
        place = _place(model, target, gpu, cpu, asked)
        work.require_file(model)
        work.require_writable(output)
        from quantkit import checking

        built = checking.build(model, output, place)
        show.built(built, output, output.stat().st_size, every_layer=layers)


def _place(model: Path, name: str | None, gpu: str | None, cpu: str, asked: Calibration) -> Target:
    """The target that is named; with a calibrator, and no name, it is ``tensorrt``.

    Raises:
        TargetError: the target has no calibrators.
        DataError: the data do not fit the file's inputs.
    """
    asked.check()
    if asked.calibrator is None:
        return work.make_target(name or "tensorrt_rtx", gpu, cpu)
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
    )
