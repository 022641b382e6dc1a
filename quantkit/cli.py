"""The command line: ``quantize``, ``build``, ``check`` and ``recipes``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from quantkit import __version__, plugins
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import screen
from quantkit.errors import QuantkitError

# PyTorch takes seconds to import: what needs it is imported inside the command that runs.
# In help texts, Typer keeps the lines that follow a backspace (\b) as they are.

_INTERRUPTED = 130
_TERMINATED = 143
_ENDED = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}

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
    code: object = 0
    with _process() as signals:
        try:
            code = app(args=argv, prog_name="quantkit", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = _INTERRUPTED
        except (Exception, SystemExit) as error:
            # A signal in the middle of an import makes libraries fail in ways of their own.
            if not signals and isinstance(error, QuantkitError):
                return _fail(str(error), error.exit_code)
            if not signals and isinstance(error, work.UsageError):
                return _fail(_usage(error), 2)
            if not signals:
                raise
            code = _INTERRUPTED
    if code == _INTERRUPTED and signals:  # it is Typer's answer to Ctrl-C as well
        code = signals[-1]
    if code in _ENDED:
        return _fail(f"{_ENDED[code]}; files that were there are unchanged", code)
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
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    static: option.Static = False,
    target: option.AnyTarget = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    form: option.Form = None,
    save_plan: option.SavePlan = None,
    save: option.SaveState = None,
    as_json: option.Json = False,
) -> None:
    """Quantize a PyTorch model, and write it as ONNX with Q/DQ.

    \b
    Examples:
      quantkit quantize net:make --weights net.pth --data calib.yaml -o net.onnx
      quantkit quantize net.pt2 --recipe int8_cpu --data calib.yaml -o cpu.onnx
      quantkit quantize net.pt2 --recipe int8_weight_only -o weights.onnx
      quantkit quantize net:make --recipe my.yaml --input-shape 1,3,8,8 -o w.onnx
    """  # noqa: D301
    started = time.perf_counter()
    with screen(as_json) as show:
        place = work.optional_target(target, gpu, cpu)
        shapes = option.parse_shapes(input_shape or ())
        for path in filter(None, (output, save_plan, save)):
            work.require_writable(path)
        chosen = work.accepted_recipe(recipe, place, cpu, data)
        wanted = form or (chosen.target if place is None else place.form)
        work.require_form(chosen, wanted)
        doubts = work.warnings_of(chosen, place, wanted, cpu)
        show.warnings(doubts)
        source = work.load(model, weights)
        batches = None if data is None else work.open_data(data, source)
        qmodel = work.quantize(source, chosen, batches, shapes, static=static)
        work.write(qmodel, output, wanted, plan=save_plan, state=save)
        show.quantized(
            qmodel.plan, chosen, output=output, form=wanted, bytes_before=work.bytes_of(source),
            bytes_after=work.bytes_on_disk(output), seconds=time.perf_counter() - started,
            warnings=doubts,
        )  # fmt: skip


@app.command()
def build(
    model: option.Onnx,
    output: option.EngineOutput,
    target: option.OneTarget = "tensorrt_rtx",
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    layers: option.Layers = False,
    as_json: option.Json = False,
) -> None:
    """Build what the target deploys, and tell how each layer runs.

    \b
    Examples:
      quantkit build net.onnx -o net.engine --gpu 8.6
      quantkit build net.onnx -o net.engine --gpu A40 --layers
      quantkit build cpu.onnx -o cpu.ort.onnx --target onnxruntime
    """  # noqa: D301
    with screen(as_json) as show:
        place = work.make_target(target, gpu, cpu)
        work.require_file(model)
        work.require_writable(output)
        from quantkit import checking

        built = checking.build(model, output, place)
        show.built(built, output, output.stat().st_size, every_layer=layers)


@app.command()
def check(
    model: option.Onnx,
    target: option.OneTarget = "tensorrt_rtx",
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    reference: option.Reference = None,
    weights: option.Weights = None,
    data: option.ComparisonData = None,
    min_sqnr: option.MinSqnr = None,
    min_agreement: option.MinAgreement = None,
    layers: option.Layers = False,
    as_json: option.Json = False,
) -> int:
    """Tell what is wrong or slow about an ONNX file, and how far it is from its model.

    Exits with 1 where something is an error.

    \b
    Examples:
      quantkit check net.onnx --gpu A40
      quantkit check cpu.onnx --target onnxruntime --cpu avx2 --json
      quantkit check net.onnx --model net:make --weights net.pth --data calib.yaml
    """  # noqa: D301
    with screen(as_json) as show:
        work.require_together(
            {"--model": reference, "--data": data},
            {"--weights": weights, "--min-sqnr": min_sqnr, "--min-agreement": min_agreement},
        )
        place = work.make_target(target, gpu, cpu)
        work.require_file(model)
        compared = None if reference is None else work.load_reference(reference, weights)
        batches = None if data is None else work.open_data(data, compared)
        from quantkit import checking

        report = checking.check(
            model, place, reference=compared, data=batches,
            min_sqnr=min_sqnr, min_agreement=min_agreement,
        )  # fmt: skip
        show.checked(report, every_layer=layers)
    return 0 if report.ok else 1


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


def _fail(message: str, code: int) -> int:
    """One line on standard error, whatever the message is made of."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "quantkit"
    message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
    message = message.replace("Value error, ", "")  # of the library that Typer checks values with
    return f"{message}; see {command} --help"


class _Ender:
    """Ends a run by a signal, and remembers it: what is being imported may swallow the exception.

    Attributes:
        came: the exit codes of the signals that came, 128 more than their numbers.
    """

    def __init__(self) -> None:
        self.came: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        """As Python's own handler, so that files are left as they were."""
        self.came.append(128 + number)
        raise KeyboardInterrupt


@contextmanager
def _process() -> Iterator[list[int]]:
    """The state of the process while a command runs: what others print, and how it is ended.

    Yields the exit codes of the signals that came.
    """
    ender = _Ender()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # What libraries log is not for users; TORCH_LOGS and python -W bring it back.
    if "TORCH_LOGS" not in os.environ:
        logging.disable(logging.ERROR)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        # Ended by kill, Python would leave at once, and temporary files would stay.
        handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, ender)
        # Where Ctrl-C is ignored (nohup, a job in the background) it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = signal.signal(signal.SIGINT, ender)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield ender.came
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
