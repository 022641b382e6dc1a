"""Torch-TensorRT's own dry run, as a `Partition`; needs Torch-TensorRT and a GPU."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from quantkit.errors import TargetError
from quantkit.graph.exporting import first_line
from quantkit.targets._torch_tensorrt_partition import Partition, Step
from quantkit.targets._torch_tensorrt_rules import step

#: How Torch-TensorRT names the part of a graph that becomes an engine.
ENGINE = "_run_on_acc"


def dry_run(sdk: Any, program: ExportedProgram, settings: Mapping[str, Any]) -> Partition:
    """Share a program out as a build would, without one.

    It is shared out with blocks of any size, so that what each ``min_block_size`` would make of it
    is known; those that are smaller than the one set are then counted to PyTorch, as in a build.

    Args:
        sdk: the module.
        program: with quantkit's operator in it, on the GPU.
        settings: of the build.

    Raises:
        TargetError: it fails.
    """
    smallest = int(settings["min_block_size"])
    asked = {**settings, "min_block_size": 1, "require_full_compilation": False}
    with redirect_stdout(io.StringIO()):  # it prints its report
        graph = compile_program(sdk, program, {**asked, "dryrun": True})
    steps = list(_steps(graph))
    sizes = [0] * (1 + max((s.engine for s in steps if s.engine is not None), default=-1))
    for found in steps:
        if found.engine is not None:
            sizes[found.engine] += 1
    return Partition(steps=tuple(steps), smallest=1, blocks=tuple(sizes)).kept(smallest)


def compile_program(sdk: Any, program: ExportedProgram, settings: Mapping[str, Any]) -> Any:
    """The program with engines in place of what TensorRT takes of it: an ``fx.GraphModule``.

    Raises:
        TargetError: names what failed.
    """
    args, kwargs = program.example_inputs or ((), {})
    try:
        return sdk.dynamo.compile(program, arg_inputs=args, kwarg_inputs=kwargs, **settings)
    except Exception as error:  # of many kinds, and AssertionError where it is not fully supported
        reason = first_line(error)
        if "require_full_compilation" in reason:
            reason = "require_full_compilation is set, and not every operator has a converter"
        raise TargetError(
            f"Torch-TensorRT {sdk.__version__} cannot compile the program: {reason.rstrip('.')}; "
            "inspect tells which operators it takes"
        ) from error


def _steps(graph: fx.GraphModule) -> Iterator[Step]:
    """The operators of a graph that was shared out, in the order in which they run."""
    engines = 0
    for node in graph.graph.nodes:
        if node.op == "call_function" and not _reads_module(node):
            yield step(node, None, False)
        elif node.op == "call_module":
            engine = engines if ENGINE in str(node.target) else None
            engines += engine is not None
            inner: Any = graph.get_submodule(str(node.target))
            for part in inner.graph.nodes:
                if part.op == "call_function":
                    yield step(part, engine, engine is not None)


def _reads_module(node: fx.Node) -> bool:
    """Whether a node only takes one of the results of a part."""
    return any(source.op == "call_module" for source in node.all_input_nodes)
