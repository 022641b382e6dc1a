"""The command line: ``quantkit`` and its commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import typer

from quantkit import __version__, plugins
from quantkit import _cli_bench as comparison
from quantkit import _cli_build as building
from quantkit import _cli_cache as caches
from quantkit import _cli_calibrate as calibration
from quantkit import _cli_check as checking
from quantkit import _cli_diagnose as diagnosing
from quantkit import _cli_finetune as finetuning
from quantkit import _cli_half as halving
from quantkit import _cli_hardware as hardware_table
from quantkit import _cli_inspect as inspection
from quantkit import _cli_migrate as migration
from quantkit import _cli_mix as mixing
from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_profile as profiling
from quantkit import _cli_recover as recovery
from quantkit import _cli_report as reporting
from quantkit import _cli_sensitivity as sensitivities
from quantkit import _cli_work as work
from quantkit._cli_process import leads, process, tells, together
from quantkit._cli_show import screen
from quantkit.errors import QuantkitError

# PyTorch takes seconds to import: what needs it is imported inside the command that runs.
# In help texts, Typer keeps the lines that follow a backspace (\b) as they are.

_INTERRUPTED = 130
_TERMINATED = 143
_ENDED = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}
#: Commands that several processes can share.
_SHARED = ("calibrate", "quantize")

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    What is wrong with the user's input is one line on standard error. Any other exception is a
    defect of quantkit, and is raised.

    Example:
        >>> main(["--version"])
        quantkit ...
        0
    """
    argv = sys.argv[1:] if arguments is None else list(arguments)
    if not leads() and not set(argv[:1]) & set(_SHARED):
        return 0  # the process that leads runs it
    code: object = 0
    with process() as signals:
        try:
            code = app(args=argv, prog_name="quantkit", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = _INTERRUPTED
        except (Exception, SystemExit) as error:
            # A signal in the middle of an import makes libraries fail in ways of their own.
            if not signals and isinstance(error, QuantkitError):
                return _fail(str(error), error.exit_code, tells(error))
            if not signals and isinstance(error, work.UsageError):
                return _fail(_usage(error), 2, tells(error))
            if not signals:
                raise
            code = _INTERRUPTED
    if code == _INTERRUPTED and signals:  # it is Typer's answer to Ctrl-C as well
        code = signals[-1]
    if code in _ENDED:
        return _fail(f"{_ENDED[code]}; files that were there are unchanged", code, leads())
    return int(code) if isinstance(code, int) else 0


@app.callback()
def _quantkit(context: typer.Context, version: option.Version = False) -> None:
    """Quantize trained PyTorch models, and prove the result up to the TensorRT engine.

    \b
    Examples:
      quantkit recipes
      quantkit quantize net:make --weights net.pth --data calib.yaml -o net.onnx
      quantkit check net.onnx --gpu A40
      quantkit build net.onnx -o net.engine --gpu A40
    """  # noqa: D301
    if version:
        print(f"quantkit {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def quantize(
    model: option.Model,
    output: option.OnnxOutput,
    recipe: option.RecipeOption = "int8_ptq",
    data: option.CalibrationData = None,
    statistics: option.Statistics = None,
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    static: option.Static = False,
    target: option.AnyTarget = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    form: option.Form = None,
    save_plan: option.SavePlan = None,
    save: option.SaveState = None,
    save_statistics: option.SaveStatistics = None,
    every: option.Every = 64,
    resume: option.Resume = False,
    checkpoint: option.RoundingCheckpoint = None,
    as_json: option.Json = False,
) -> None:
    """Quantize a PyTorch model or a float ONNX file, and write it as ONNX (or .pt2) with Q/DQ.

    \b
    Examples:
      quantkit quantize net:make --weights net.pth --data calib.yaml -o net.onnx
      quantkit quantize net:make --recipe int8_cpu --data calib.yaml -o cpu.pt2
      quantkit quantize net.pt2 --recipe w4a8 --data calib.yaml -o a.onnx --checkpoint a.rounded
      quantkit quantize net.pt2 --recipe int8_cpu --data calib.yaml -o cpu.onnx
      quantkit quantize net.pt2 --data calib.yaml -o gate.onnx --save g.qk
      quantkit quantize float.onnx --data calib.yaml -o net.onnx
      quantkit quantize net.pt2 --recipe int8_weight_only -o weights.onnx
      quantkit quantize net:make --recipe my.yaml --input-shape 1,3,8,8 -o w.onnx
    """  # noqa: D301
    started = time.perf_counter()
    with together(), screen(as_json) as show:
        onnx_files.refuse_options(
            model, {"--weights": weights, "--input-shape": input_shape, "--static": static,
                    "--save": save, "--checkpoint": checkpoint},
        )  # fmt: skip
        place = work.optional_target(target, gpu, cpu)
        place = models.fitting_target(model, output, place, cpu)
        shapes = option.parse_shapes(input_shape or ())
        if resume and checkpoint and not save_statistics:
            raise work.UsageError("--checkpoint goes on if its file is there: leave --resume out")
        work.require_checkpoint("--save-statistics", save_statistics, data, statistics, resume)
        for path in filter(None, (output, save_plan, save, save_statistics, checkpoint)):
            work.require_writable(path)
        chosen = work.accepted_recipe(recipe, place, cpu, data, any_data=bool(statistics))
        if checkpoint is not None:
            from quantkit.workflow import require_learning

            require_learning(chosen)
        wanted = form or (chosen.target if place is None else place.form)
        work.require_form(chosen, wanted)
        doubts = work.warnings_of(chosen, place, wanted, cpu)
        show.warnings(doubts)
        source = models.load(model, weights)
        given = models.seen(data, source, statistics, save_statistics, every=every, resume=resume)
        qmodel = models.quantize(
            source, chosen, given, shapes, static=static, checkpoint=checkpoint
        )
        if not leads():
            return
        written = models.write(qmodel, output, wanted, plan=save_plan, state=save)
        show.quantized(
            qmodel.plan, chosen, output=output, form=wanted, bytes_before=models.bytes_of(source),
            bytes_after=written, seconds=time.perf_counter() - started,
            warnings=doubts, judged=getattr(qmodel, "judged", ()),
        )  # fmt: skip


@app.command()
def calibrate(
    model: option.Model,
    recipe: option.RecipeOption = "int8_ptq",
    data: option.CalibrationData = None,
    output: option.StatisticsOutput = None,
    statistics: option.Statistics = None,
    compare: option.Compare = False,
    calibrator: option.Calibrators = None,
    samples: option.Samples = 256,
    pictures: option.Pictures = None,
    tensor: option.Tensors = None,
    every: option.Every = 64,
    resume: option.Resume = False,
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    static: option.Static = False,
    cpu: option.Cpu = "auto",
    cache: option.CacheOutput = None,
    tensorrt_version: option.TensorrtVersion = "10.13.3",
    as_json: option.Json = False,
) -> None:
    """Collect what calibrators read, in one pass over data, and compare what they make of it.

    Under torchrun, quantize and calibrate share the data among all processes.

    \b
    Examples:
      quantkit calibrate net:make --data calib.yaml -o seen.safetensors
      quantkit calibrate net.pt2 --statistics seen.safetensors --data calib.yaml --compare
      quantkit calibrate net.pt2 --statistics seen.safetensors --pictures pictures
      quantkit calibrate net.pt2 --data calib.yaml -o seen.safetensors --resume
      quantkit calibrate float.onnx --data calib.yaml --cache float.cache
    """  # noqa: D301
    asked = calibration.Asked(
        recipe=recipe, data=data, output=output, statistics=tuple(statistics or ()),
        compare=compare, calibrators=tuple(calibrator or ()), samples=samples, pictures=pictures,
        tensors=tuple(tensor or ()), every=every, resume=resume, cpu=cpu, static=static,
        shapes=option.parse_shapes(input_shape or ()),
    )  # fmt: skip
    with together(), screen(as_json) as show:
        onnx_files.refuse_options(
            model, {"--weights": weights, "--input-shape": input_shape, "--static": static}
        )
        if cache is not None:
            caches.write(model, cache, tensorrt_version, asked, show)
        else:
            calibration.calibrate(model, weights, asked, show)


app.command("finetune")(finetuning.command)
app.command("recover")(recovery.command)
app.command("build")(building.command)
app.command("check")(checking.command)
app.command("bench")(comparison.command)
app.command("half")(halving.command)
app.command("hardware")(hardware_table.command)
app.command("inspect")(inspection.command)
app.command("sensitivity")(sensitivities.command)
app.command("mix")(mixing.command)
app.command("diagnose")(diagnosing.command)
app.command("report")(reporting.command)
app.command("migrate")(migration.command)
app.command("profile")(profiling.command)


@app.command()
def recipes(recipe: option.RecipeArgument = None, as_json: option.Json = False) -> None:
    """List the recipes; show one; or validate a file.

    \b
    Examples:
      quantkit recipes
      quantkit recipes int8_ptq
      quantkit recipes my.yaml
    """  # noqa: D301
    from quantkit.recipe import read_recipe

    with screen(as_json) as show:
        if recipe is None:
            names = plugins.names("recipes")
            show.recipes([read_recipe(plugins.recipe_path(name)) for name in names])
        else:
            # For a processor that changes nothing in it: the recipe as it is written.
            found = work.accepted_recipe(recipe, None, "vnni", None, any_data=True)
            show.recipe(found, work.where_it_runs(found))


def _fail(message: str, code: int, told: bool) -> int:
    """One line on standard error, whatever the message is made of; on one process of a group."""
    if told:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "quantkit"
    message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
    message = message.replace("Value error, ", "")  # of the library that Typer checks values with
    return f"{message}; see {command} --help"
