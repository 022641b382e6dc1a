"""``quantkit hardware``: what a GPU or processor can do in few bits, and what this machine has."""

from __future__ import annotations

from typing import Annotated

import typer

from quantkit import _cli_hardware_show as told
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit import hardware
from quantkit._cli_hardware_judge import Asked, judge
from quantkit._cli_show import Screen, screen

NamedGpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME|CC",
        show_default=False,
        help="This GPU instead of that of this machine: A40, RTX 5090, 8.6 …",
    ),
]
AnyRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE|FORMAT",
        show_default=False,
        help="Does it run there? A recipe, or a format: fp8, int8, nvfp4 … Exits with 1 if not.",
    ),
]
OneRuntime = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        show_default=False,
        help="This runtime alone, with reasons and sources: tensorrt, tensorrt_rtx, inductor …",
    ),
]
Every = Annotated[bool, typer.Option("--all", help="Every GPU and processor of the table.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="With --all: as a page of Markdown.")]


def command(
    gpu: NamedGpu = None,
    cpu: option.Cpu = "auto",
    recipe: AnyRecipe = None,
    target: OneRuntime = None,
    every: Every = False,
    markdown: Markdown = False,
    as_json: option.Json = False,
) -> int:
    """Tell what this machine, a GPU or a processor can do in few bits, and why.

    With --recipe it exits with 1 where the recipe or format does not run: an A40 has no fp8.

    \b
    Examples:
      quantkit hardware
      quantkit hardware --gpu A40
      quantkit hardware --gpu "RTX 5090" --target tensorrt_rtx
      quantkit hardware --gpu L4 --recipe fp8
      quantkit hardware --cpu avx2 --recipe int8_cpu
      quantkit hardware --all --json
    """  # noqa: D301
    if markdown and (as_json or not every):
        raise work.UsageError("--markdown is a form of the whole table: give --all, and no --json")
    if every and (gpu is not None or recipe is not None or cpu != "auto"):
        raise work.UsageError("--all tells of everything: leave --gpu, --cpu and --recipe out")
    if gpu is not None and cpu != "auto" and recipe is None:
        raise work.UsageError("--gpu and --cpu are two questions: give one of them")
    runtimes = tuple(hardware.Runtime) if target is None else hardware.Runtime.of(target)
    named = None if gpu is None else hardware.Gpu.of(gpu)
    with screen(as_json) as show:
        if every:
            if markdown:
                from quantkit.hardware.page import markdown as page

                show.line(page().rstrip("\n"), copied=True)
            else:
                told.everything(show, runtimes)
            return 0
        if recipe is not None:
            return _recipe(recipe, named, cpu, target, runtimes, show)
        if named is not None:
            told.gpu(show, named, runtimes, detailed=target is not None)
        elif cpu != "auto":
            told.processor(show, hardware.named_cpu(cpu))
        else:
            told.machine(show, hardware.detect(), runtimes, detailed=target is not None)
    return 0


def _recipe(
    name: str,
    gpu: hardware.Gpu | None,
    cpu: str,
    target: str | None,
    runtimes: tuple[hardware.Runtime, ...],
    show: Screen,
) -> int:
    """Whether a recipe or format runs on a GPU; with none named, on this machine's or its CPU."""
    here = None
    if gpu is None and cpu == "auto" and target != "onnxruntime":
        devices = hardware.detect_gpus().devices
        here = devices[0].gpu if devices else None
    answer = judge(Asked(name=name, gpu=gpu, here=here, cpu=cpu, runtimes=runtimes))
    told.judged(show, answer)
    return 0 if answer.ok else 1
