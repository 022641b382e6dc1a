"""How ``quantkit hardware`` prints its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from quantkit import hardware
from quantkit._cli_show import Screen, size
from quantkit.hardware import CHIPS, KINDS, Cpu, CpuRuntime, Format, Gpu, Machine, Runtime, Verdict
from quantkit.hardware.formats import Support
from quantkit.hardware.page import LEGEND, PARTLY, rows, span

if TYPE_CHECKING:
    from quantkit._cli_hardware_judge import Answer

#: The heads of the columns, in two lines.
_HEADS = {
    Runtime.TENSORRT_10: "TensorRT\n10",
    Runtime.TENSORRT_11: "TensorRT\n11",
    Runtime.TENSORRT_RTX: "TensorRT\n-RTX",
    Runtime.TORCH_TENSORRT: "Torch-\nTensorRT",
    Runtime.INDUCTOR: "\nInductor",
    Runtime.ONNXRUNTIME_CUDA: "ONNX RT\nCUDA",
    Runtime.ONNXRUNTIME_TENSORRT: "ONNX RT\nTensorRT",
}
_NEXT = (
    'quantkit hardware --gpu A40 (or "RTX 5090", 8.6 …) tells what that GPU can do, and --all '
    "lists every one."
)


def machine(show: Screen, found: Machine, runtimes: Sequence[Runtime], *, detailed: bool) -> None:
    """This machine: processor, GPUs, runtimes, and what they can do."""
    gpus = list(dict.fromkeys(device.gpu for device in found.gpus.devices))
    show.json(
        {
            "cpu": None if found.cpu is None else _cpu_json(found.cpu),
            "gpus": [
                _gpu_json(device.gpu) | {"memory_bytes": device.memory_bytes}
                for device in found.gpus.devices
            ],
            "no_gpu": found.gpus.why_none or None,
            "driver": found.gpus.driver,
            "cuda": found.gpus.cuda,
            "runtimes": dict(found.runtimes),
            "cells": [cell for gpu in gpus for cell in _cells_json(gpu, runtimes)],
        }
    )
    show.line("This machine", "bold")
    first, *others = _parts(found)
    show.table(first, others)
    if found.cpu is not None:
        show.line()
        _processor(show, found.cpu)
    for gpu in gpus:
        show.line()
        _gpu(show, gpu, runtimes, detailed=detailed)
    if not gpus:
        show.line()
        show.line(f"No GPU here. {_NEXT}")


def _parts(found: Machine) -> Iterator[tuple[str, str]]:
    cpu = found.cpu
    if cpu is None:
        yield "CPU", "not known: install py-cpuinfo, or name its kind with --cpu"
    else:
        yield "CPU", cpu.name + (f" (kind {cpu.kind})" if cpu.kind else "")
    for device in found.gpus.devices:
        memory = "" if device.memory_bytes is None else f", {size(device.memory_bytes)}"
        capability = "{}.{}".format(*device.gpu.compute_capability)
        yield "GPU", f"{device.gpu.name}: compute capability {capability}{memory}"
    if found.gpus.why_none:
        yield "GPU", f"none: {found.gpus.why_none}"
    versions = [("driver", found.gpus.driver), ("CUDA", found.gpus.cuda)]
    known = [f"{name} {version}" for name, version in versions if version]
    if known:
        yield "driver", ", ".join(known).removeprefix("driver ")
    yield "runtimes", ", ".join(v for v in found.runtimes.values() if v) or "none"
    absent = [name for name, version in found.runtimes.items() if version is None]
    if absent:
        yield "not here", ", ".join(absent)


def processor(show: Screen, cpu: Cpu) -> None:
    """What a processor does with INT8."""
    show.json({"cpu": _cpu_json(cpu)})
    _processor(show, cpu)


def _processor(show: Screen, cpu: Cpu) -> None:
    show.line(f"INT8 on {cpu.name}", "bold")
    found = [(runtime, hardware.cpu_support(cpu, runtime)) for runtime in CpuRuntime]
    show.table(
        ("runtime", "sums in", "weights", "what follows"),
        [
            (r.value, f"{x.sum_bits} bits", f"{x.weight_bits} bits", f"{x.why} {x.instead}")
            for r, x in found
        ],
    )
    show.line(f"It multiplies with {found[0][1].instruction}.", "dim")


def gpu(show: Screen, named: Gpu, runtimes: Sequence[Runtime], *, detailed: bool) -> None:
    """What a GPU does with each format in each runtime."""
    show.json({"gpu": _gpu_json(named), "cells": list(_cells_json(named, runtimes))})
    _gpu(show, named, runtimes, detailed=detailed)


def _gpu(show: Screen, named: Gpu, runtimes: Sequence[Runtime], *, detailed: bool) -> None:
    chip = named.chip
    capability = "{}.{}".format(*named.compute_capability)
    title = f"Compute capability {capability}" + ("" if chip is None else f" ({chip.architecture})")
    if named.name:
        title = f"{named.name}: {title[0].lower()}{title[1:]}"
    elif chip is not None:
        title += f": {', '.join(chip.products[:6])}" + (" …" if chip.products[6:] else "")
    show.line(title, "bold")
    if detailed:
        _details(show, named, runtimes)
        return
    table = {f: [hardware.support(named, f, runtime) for runtime in runtimes] for f in Format}
    head = ("", *(_HEADS[runtime] for runtime in runtimes))
    show.table(
        head, [(f.value, *(x.verdict.short + x.mark for x in cells)) for f, cells in table.items()]
    )
    _legend(show, [x for cells in table.values() for x in cells], letters=False)
    reasons = [row for f, cells in table.items() for row in _reasons(f, cells, runtimes)]
    if reasons:
        show.line()
        show.table(("format", "why, and what to use instead"), reasons)
    show.line()
    show.line("--target NAME shows one runtime with its sources.", "dim")


def _reasons(
    format: Format, cells: Sequence[Support], runtimes: Sequence[Runtime]
) -> Iterator[tuple[str, str]]:
    """What is to be said of a format: whatever is not simply a product in it."""
    groups: dict[str, list[Runtime]] = {}
    for cell, runtime in zip(cells, runtimes, strict=True):
        plain = cell.verdict in (Verdict.TENSOR_CORE, Verdict.CUDA_CORE) and not cell.instead
        if not plain or cell.only:
            groups.setdefault(f"{cell.why} {cell.instead}".strip(), []).append(runtime)
    for text, found in groups.items():
        yield format.value, f"{_named(found, runtimes)}{text}"


def _named(found: Sequence[Runtime], every: Sequence[Runtime]) -> str:
    others = [runtime for runtime in every if runtime not in found]
    if not others:
        return ""
    if len(others) == 1 and len(found) > 2:
        return f"All but {others[0].short}: "
    return f"{', '.join(runtime.short for runtime in found)}: "


def _details(show: Screen, named: Gpu, runtimes: Sequence[Runtime]) -> None:
    """Every format of each runtime, with its reason, and the sources of all."""
    for runtime in runtimes:
        cells = {format: hardware.support(named, format, runtime) for format in Format}
        show.line()
        show.line(runtime.label, "bold")
        show.table(
            ("format", "verdict", "why, and what to use instead"),
            [(f.value, x.verdict.value, f"{x.why} {x.instead}".strip()) for f, x in cells.items()],
        )
        show.line("Sources", "bold")
        for source in dict.fromkeys(s for x in cells.values() for s in x.sources):
            show.line(f"  {source}", "dim", copied=True)


def everything(show: Screen, runtimes: Sequence[Runtime]) -> None:
    """Every GPU, by runtime, and every processor."""
    every = [Gpu("", chip.capability) for chip in CHIPS]
    show.json(
        {
            "chips": [
                {"capability": "{}.{}".format(*chip.capability), "architecture": chip.architecture,
                 "products": list(chip.products)}
                for chip in CHIPS
            ],
            "cells": [cell for found in every for cell in _cells_json(found, runtimes)],
            "cpus": [_cpu_json(hardware.named_cpu(kind)) for kind in KINDS],
        }
    )  # fmt: skip
    show.table(
        ("GPU", "architecture", "for example"),
        [(span([c]), c.architecture, ", ".join(c.products[:6])) for c in CHIPS],
    )
    for runtime in runtimes:
        show.line()
        show.line(runtime.label, "bold")
        show.table(
            ("GPU", *Format),
            [
                (span(chips), *(x.verdict.letter + x.mark for x in found))
                for chips, found in rows(runtime)
            ],
        )
    show.line()
    _legend(show, [x for r in runtimes for _, found in rows(r) for x in found], letters=True)
    show.line()
    show.line("INT8 on processors", "bold")
    show.table(
        ("kind", "multiplies with", "sums in", "weights"),
        [
            (kind, x.instruction, f"{x.sum_bits} bits", f"{x.weight_bits} bits")
            for kind in KINDS
            for x in [hardware.cpu_support(hardware.named_cpu(kind), CpuRuntime.ONNXRUNTIME)]
        ],
    )
    show.line()
    show.line("--gpu NAME and --cpu KIND tell why; --json has every cell with its sources.", "dim")


def _legend(show: Screen, cells: Sequence[Support], *, letters: bool) -> None:
    """What the signs mean that are there."""
    there = {cell.verdict for cell in cells}
    for verdict, meaning in LEGEND:
        if verdict in there:
            sign = verdict.letter if letters else verdict.short
            show.line(f"  {sign:9} {meaning}", "dim")
    if any(cell.only for cell in cells):
        show.line(f"  {'*':9} {PARTLY}", "dim")


def judged(show: Screen, answer: Answer) -> None:
    """Whether a recipe or format runs, in one line, and before it each runtime."""
    show.json(asdict(answer))
    if answer.rows:
        show.table(("runtime", "answer", "why"), [(x.title, x.verdict, x.why) for x in answer.rows])
        show.line()
    show.line(
        f"{'ok' if answer.ok else 'not ok'}: {answer.reason}",
        "bold green" if answer.ok else "bold red",
        copied=True,
    )


def _cells_json(gpu: Gpu, runtimes: Sequence[Runtime]) -> Iterator[dict[str, Any]]:
    for format in Format:
        for runtime in runtimes:
            cell = hardware.support(gpu, format, runtime)
            yield {
                "gpu": str(gpu),
                "capability": "{}.{}".format(*gpu.compute_capability),
                "format": format.value,
                "runtime": runtime.value,
                **asdict(cell),
            }


def _gpu_json(gpu: Gpu) -> dict[str, Any]:
    chip = gpu.chip
    return {
        "name": gpu.name or None,
        "capability": "{}.{}".format(*gpu.compute_capability),
        "architecture": None if chip is None else chip.architecture,
        "tensor_cores": gpu.has_tensor_cores,
    }


def _cpu_json(cpu: Cpu) -> dict[str, Any]:
    return {
        "name": cpu.name,
        "kind": cpu.kind,
        "runtimes": {
            runtime.value: asdict(hardware.cpu_support(cpu, runtime)) for runtime in CpuRuntime
        },
    }
