"""The whole journey on a small network: train, quantize, export, run in INT8, build for GPUs.

One float model goes two ways. Recipe ``int8_cpu`` is for ONNX Runtime, which runs it here; recipe
``int8_ptq`` is for TensorRT, whose builder makes INT8 engines here too, for GPUs that this machine
need not have. Every figure is measured by this run; the exit code is 1 where a check fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import torch
    from digits import Digits, DigitsNet
    from torch import nn

    from quantkit.interfaces import Inspection

#: Generations of GPUs to build engines for.
GPUS = {"8.6": "Ampere", "8.9": "Ada", "12.0": "Blackwell"}
BATCHES, REPEATS = (1, 32), 200
#: What the checks at the end want, in percent.
LEAST_ACCURACY, LEAST_AGREEMENT = 97.0, 99.0

console = Console(highlight=False)


@dataclass(frozen=True, kw_only=True)
class Version:
    """The model in one ONNX file, and what was measured of it.

    Attributes:
        file: the ONNX file.
        simulated: accuracy in PyTorch, in percent.
        deployed: accuracy of the file in ONNX Runtime, in percent.
        same: on how many test images the two name the same digit.
        coverage: what each runtime makes of the file, by the runtime's name.
        missing: why the engines could not be built here; empty where they were.
    """

    file: Path
    simulated: float
    deployed: float
    same: int
    coverage: dict[str, Inspection] = field(default_factory=dict)
    missing: str = ""


def main() -> int:
    """Run every step, print the table; 0 where every check holds."""
    parser = argparse.ArgumentParser(description="Train, quantize and deploy a small network.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the files")
    out: Path = parser.parse_args().out
    started = time.perf_counter()
    with step("Load PyTorch"):
        import quantkit.onnx.export  # noqa: F401  # PyTorch's exporter is slow to import
    from quantkit.errors import QuantkitError

    try:
        out.mkdir(parents=True, exist_ok=True)
        return journey(out, started)
    except (QuantkitError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return getattr(error, "exit_code", 1)


def journey(out: Path, started: float) -> int:
    """From the data to the table; the exit code."""
    from digits import load_digits_data, train

    from quantkit.targets.onnxruntime import OnnxRuntime

    digits = load_digits_data()
    with step(f"Train a convolutional network on {len(digits.train[0]):,} images", busy=False):
        model = train(digits)
    with step("Export it to ONNX in float"):
        original = export_float(model, digits, out)
    cpu = quantize(model, "int8_cpu", digits, out / "digits.int8_cpu.onnx")
    gpu = quantize(model, "int8_ptq", digits, out / "digits.int8_ptq.onnx")
    with step("Build TensorRT-RTX engines (needs no GPU)", busy=False):
        gpu = build_engines(gpu, out)
    with step("Ask ONNX Runtime what it runs in INT8, and how fast"):
        cpu = replace(cpu, coverage={"ONNX Runtime": OnnxRuntime().inspect(cpu.file)})
        milliseconds = measure_latency({"float": original.file, "int8": cpu.file}, digits)
    images = len(digits.test[0])
    console.print(table((original, cpu, gpu), milliseconds, images))
    explain(cpu, gpu)
    failures = failed_checks((original, cpu, gpu), images)
    for failure in failures:
        console.print(f"[red]Check failed:[/] {escape(failure)}", soft_wrap=True)
    if not failures:
        files = ", ".join(sorted(file.name for file in out.glob("digits.*")))
        seconds = time.perf_counter() - started
        console.print(
            f"[green]Every check holds[/] ({seconds:.0f} s). In {escape(str(out))}/: {files}."
        )
    return 1 if failures else 0


def save_inputs(model: DigitsNet, digits: Digits, out: Path) -> torch.export.ExportedProgram:
    """The float network and its calibration data as files, for the command line."""
    import numpy as np
    import torch

    images = digits.calib[0]
    program = torch.export.export(
        model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, out / "digits.pt2")
    np.savez(out / "digits.calibration.npz", x=images.numpy())
    text = "# Where the images are, and the input that takes them.\n"
    text += "source: digits.calibration.npz\ninputs: {x: {}}\n"
    (out / "digits.calibration.yaml").write_text(text)
    return program


def export_float(model: DigitsNet, digits: Digits, out: Path) -> Version:
    """The float network as PyTorch exports it: what the quantized ones are compared with."""
    import logging
    import warnings

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own deprecations
        program = torch.onnx.export(save_inputs(model, digits, out), (), dynamo=True, verbose=False)
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, which would make the float file look larger
    file = out / "digits.float.onnx"
    program.save(file, external_data=False)
    return compare(model, file, digits)


def quantize(model: DigitsNet, recipe: str, digits: Digits, file: Path) -> Version:
    """Quantize by a recipe, export, and compare the file with its simulation in PyTorch."""
    import quantkit as qk

    images = digits.calib[0]
    with step(f"Quantize by recipe {recipe}, from {len(images)} images", busy=False):
        qmodel = qk.quantize(model, recipe, calibration=list(images.split(32)))
    with step("Export it to ONNX, run the file on the test images"):
        qk.export_onnx(qmodel, file)
        return compare(qmodel, file, digits)


def compare(model: nn.Module, file: Path, digits: Digits) -> Version:
    """The model in PyTorch and its file in ONNX Runtime, on the test images."""
    import torch

    from quantkit.targets.onnxruntime import OnnxRuntime

    images, labels = (part.numpy() for part in digits.test)
    with torch.inference_mode():
        simulated = model(digits.test[0]).argmax(dim=1).numpy()
    [[logits]] = OnnxRuntime().run(file, [{"x": images}])
    deployed = logits.argmax(axis=1)
    return Version(
        file=file,
        simulated=100.0 * float((simulated == labels).mean()),
        deployed=100.0 * float((deployed == labels).mean()),
        same=int((simulated == deployed).sum()),
    )


def build_engines(version: Version, out: Path) -> Version:
    """One TensorRT-RTX engine for each generation of GPUs, and what runs in INT8 in it."""
    from quantkit.errors import MissingDependencyError
    from quantkit.targets.tensorrt_rtx import TensorRTRTX

    built = {}
    for capability, name in GPUS.items():
        engine = out / f"digits.sm{capability.replace('.', '')}.engine"
        try:
            built[name] = TensorRTRTX(compute_capability=capability).build(version.file, engine)
        except MissingDependencyError as error:
            return replace(version, missing=str(error))
    return replace(version, coverage=built)


def measure_latency(files: dict[str, Path], digits: Digits) -> dict[int, dict[str, float]]:
    """Median milliseconds by batch size and file; the files take turns."""
    from quantkit.targets.onnxruntime import latency, medians

    images = digits.test[0].numpy()
    return {
        batch: medians(latency(files, {"x": images[:batch]}, repeats=REPEATS)) for batch in BATCHES
    }


def table(
    versions: Sequence[Version], milliseconds: dict[int, dict[str, float]], images: int
) -> Table:
    """Everything measured, one column a file: float, for CPUs, for TensorRT."""
    _, cpu, gpu = versions
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("three ONNX files", no_wrap=True)
    for name in ("float", "INT8\nfor CPUs", "INT8 for\nTensorRT"):
        result.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    result.add_row("recipe", "", "int8_cpu", "int8_ptq")
    result.add_row("accuracy in PyTorch", *(f"{v.simulated:.2f} %" for v in versions))
    result.add_row("accuracy of the file", *(f"{v.deployed:.2f} %" for v in versions))
    result.add_row("same answer in both", *(f"{v.same} of {images}" for v in versions))
    sizes = [v.file.stat().st_size for v in versions]
    smaller = (f"{size / 1e3:.0f} kB ({sizes[0] / size:.1f}x)" for size in sizes[1:])
    result.add_row("file size (smaller)", f"{sizes[0] / 1e3:.0f} kB", *smaller)
    for batch, times in milliseconds.items():
        before, after = times["float"], times["int8"]
        faster = f"{after:.3f} ms ({before / after:.1f}x)"
        label = f"latency, batch {batch} (faster)"
        result.add_row(label, f"{before:.3f} ms", faster, "needs a GPU")
    result.add_row("\nlayers in INT8, of planned")
    for runtime, found in cpu.coverage.items():
        result.add_row(f"  {runtime}", "", covered(found), "")
    for name in GPUS.values():
        cell = "not installed" if gpu.missing else covered(gpu.coverage[name])
        result.add_row(f"  TensorRT-RTX, {name}", "", "", cell)
    return result


def covered(found: Inspection) -> str:
    """How many of the layers that the file wants in INT8 run so."""
    return f"{found.covered} of {found.planned}"


def explain(cpu: Version, gpu: Version) -> None:
    """What the table cannot hold: layers left in float, and how and where it was measured."""
    from quantkit.hardware import detect_cpu

    for version in (cpu, gpu):
        for found in list(version.coverage.values())[:1]:
            for layer in (layer for layer in found.layers if not layer.quantized):
                why = escape(f"{layer.node} ({layer.reason})")
                console.print(f"Left in float in {version.file.name}: {why}.")
    if gpu.missing:
        missing = escape(gpu.missing)
        console.print(f"[yellow]No engine was built.[/] {missing} (for Linux and Windows).")
    else:
        console.print("The engines were built, not run: that needs a GPU of their kind.")
    console.print(
        "PyTorch simulates INT8. ONNX Runtime runs the files: int8_cpu in integers, int8_ptq in "
        "float on the same grids."
    )
    console.print(
        f"Latency is the median of {REPEATS} runs, the files taking turns, on one thread of "
        f"{detect_cpu().name}.\n"
    )


def failed_checks(versions: Sequence[Version], images: int) -> list[str]:
    """One sentence for each thing that is not as it should be."""
    failures = []
    for version in versions:
        name = version.file.name
        for what, percent, least in (
            ("accuracy in PyTorch", version.simulated, LEAST_ACCURACY),
            ("accuracy in ONNX Runtime", version.deployed, LEAST_ACCURACY),
            ("agreement with PyTorch", 100 * version.same / images, LEAST_AGREEMENT),
        ):
            if percent < least:
                failures.append(f"{name}: {what} is {percent:.2f} %, below {least} %.")
        for runtime, found in version.coverage.items():
            failures += [f"{name} in {runtime}: {finding}" for finding in found.findings]
            if found.planned == 0 or found.covered < found.planned:
                failures.append(f"{name} in {runtime}: only {covered(found)} layers run in INT8.")
    return failures


@contextmanager
def step(title: str, *, busy: bool = True) -> Iterator[None]:
    """Say what is being done, then how long it took.

    Args:
        title: what is being done.
        busy: show that something goes on; not where what is called has a progress bar of its own.
    """
    started = time.perf_counter()
    if busy and console.is_terminal:
        with console.status(title):
            yield
    else:
        yield
    console.print(f"{title:<62}[dim]{time.perf_counter() - started:6.1f} s[/]")


if __name__ == "__main__":
    sys.exit(main())
