"""``quantkit check``: what is wrong or slow about a file, and where it leaves its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit import _cli_model as models
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import screen

if TYPE_CHECKING:
    from quantkit._cli_model import Source
    from quantkit.data import Data
    from quantkit.model import QuantizedModel
    from quantkit.recipe import Recipe

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        help="What quantize --save wrote beside the file: compare layer by layer.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DATA.yaml",
        help="What it was calibrated on, for recipes whose passes look at it; --data if absent.",
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, help="The first so many, layer by layer."),
]
MinLayerSqnr = Annotated[
    float,
    typer.Option(
        "--min-layer-sqnr", metavar="DB", help="Fail where a step, by itself, is farther off."
    ),
]


def command(
    model: option.Onnx,
    target: option.OneTarget = "tensorrt_rtx",
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    reference: option.Reference = None,
    weights: option.Weights = None,
    state: State = None,
    data: option.ComparisonData = None,
    calibration: Calibration = None,
    samples: Samples = 64,
    min_sqnr: option.MinSqnr = None,
    min_agreement: option.MinAgreement = None,
    min_layer_sqnr: MinLayerSqnr = 50.0,
    static: option.Static = False,
    layers: option.Layers = False,
    as_json: option.Json = False,
) -> int:
    """Tell what is wrong or slow about an ONNX file, and how far it is from its model.

    With --state the float model, the simulated quantized one and the file are compared at every
    layer, and the first is named where the file leaves the simulation. Exits with 1 where
    something is an error.

    \b
    Examples:
      quantkit check net.onnx --gpu A40
      quantkit check cpu.onnx --target onnxruntime --cpu avx2 --json
      quantkit check net.onnx --model net:make --weights net.pth --data calib.yaml
      quantkit check gate.onnx --target onnxruntime --model net.pt2 --data calib.yaml --state g.qk
    """  # noqa: D301
    with screen(as_json) as show:
        work.require_together(
            {"--model": reference, "--data": data},
            {"--weights": weights, "--min-sqnr": min_sqnr, "--min-agreement": min_agreement,
             "--state": state, "--calibration": calibration},
        )  # fmt: skip
        place = work.make_target(target, gpu, cpu)
        work.require_file(model)
        if state is not None:
            work.require_file(state, "what quantize --save wrote beside the model's file")
        compared = None if reference is None else models.load(reference, weights)
        batches = None if data is None else models.open_data(data, compared)
        simulated = floating = None
        if state is not None and compared is not None and batches is not None:
            seen = batches if calibration is None else models.open_data(calibration, compared)
            simulated, floating = restored(model, compared, state, seen, static=static)
        from quantkit import checking

        report = checking.check(
            model, place, reference=compared, data=batches,
            min_sqnr=min_sqnr, min_agreement=min_agreement, simulated=simulated, floating=floating,
            layer_samples=samples, min_layer_sqnr=min_layer_sqnr,
        )  # fmt: skip
        show.checked(report, every_layer=layers)
    return 0 if report.ok else 1


def restored(
    file: Path, source: Source, state: Path, data: Data, *, static: bool
) -> tuple[QuantizedModel, QuantizedModel]:
    """The quantized model that a file was written of, and the same in float.

    Raises:
        ModelFileError: the file tells no recipe, or the state is of another model or recipe.
    """
    from quantkit.model import copied
    from quantkit.restoring import restore

    if isinstance(source, Path):
        raise work.UsageError(
            "--state is of a PyTorch model, and --model names an ONNX file; give the model that "
            "was quantized"
        )
    floating = models.prepared(source, _recipe_of(file), data, [], static=static)
    simulated = copied(floating)
    restore(simulated, state)
    simulated.simulate()
    floating.simulate(False)
    return simulated, floating


def _recipe_of(file: Path) -> Recipe:
    """The recipe that a file was made by: it is written in it."""
    from quantkit.errors import ModelFileError
    from quantkit.onnx.facts import read_proto
    from quantkit.recipe import parse_recipe

    kept = {prop.key: prop.value for prop in read_proto(file).metadata_props}
    if "quantkit.recipe.yaml" not in kept:
        raise ModelFileError(
            f"{file}: tells no recipe, so quantkit did not write it as it is; leave --state out, "
            "or check the file that export wrote"
        )
    text, name = kept["quantkit.recipe.yaml"], kept["quantkit.recipe"]
    return parse_recipe(text, name=name, source=str(file))
