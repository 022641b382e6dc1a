"""What Torch-TensorRT would make of a program, told without it: by the rules of version 2.13.0.

The operators that have a converter are those of its registries (`_torch_tensorrt_lists`), by name
alone: what some converters refuse, by arguments or dynamic shapes, is not known here. Blocks come
out as from its default partitioner, which takes all that can run by turns of what has a converter
and what has none (``torch.fx.passes.splitter_base``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from quantkit import partitioning
from quantkit.errors import TargetError
from quantkit.graph.aten import module_path
from quantkit.graph.exporting import first_line
from quantkit.operators import Call, is_call
from quantkit.program.writing import layer_name
from quantkit.targets._torch_tensorrt_converter import is_on_a_grid_of_tensorrt
from quantkit.targets._torch_tensorrt_lists import CONVERTED, KEPT, REWRITTEN
from quantkit.targets._torch_tensorrt_partition import Partition, Step


def share_out(
    program: ExportedProgram, *, smallest: int, executed: Collection[str] = ()
) -> Partition:
    """The engines and what is left to PyTorch.

    Args:
        program: with quantkit's operator in place of Q/DQ.
        smallest: ``min_block_size``.
        executed: operators that PyTorch is to run, as ``torch.ops.aten.relu.default``.
    """
    lowered = decomposed(program)
    constants = _constants(lowered)
    nodes = [
        node
        for node in lowered.graph.nodes
        if node.op == "call_function" and node not in constants and not _is_dropped(node)
    ]
    supported = {node.name: _is_supported(node, constants, executed) for node in nodes}
    # Small blocks are left out below: Torch-TensorRT then joins no others over them.
    blocks = partitioning.split([_plain(node, supported) for node in nodes]).engines
    engine = {nodes[i].name: index for index, block in enumerate(blocks) for i in block.steps}
    steps = (step(node, engine.get(node.name), supported[node.name]) for node in nodes)
    sizes = tuple(len(block.steps) for block in blocks)
    return Partition(steps=tuple(steps), smallest=1, blocks=sizes).kept(smallest)


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in the operators that converters are looked up for.

    Raises:
        TargetError: an operator cannot be decomposed.
    """
    table = torch.export.default_decompositions()
    for decomposed_operator in list(table):
        if str(decomposed_operator) in KEPT:
            del table[decomposed_operator]
    try:
        lowered: ExportedProgram = program.run_decompositions(table)
    except Exception as error:  # of many kinds: whatever an operator's rule runs into
        raise TargetError(
            f"the program cannot be decomposed: {first_line(error).rstrip('.')}; export it again "
            "with quantkit.export_pt2"
        ) from error
    return lowered


def _plain(node: fx.Node, supported: Mapping[str, bool]) -> partitioning.Step:
    reads = tuple(source.name for source in node.all_input_nodes if source.name in supported)
    return partitioning.Step(
        name=node.name, inputs=reads, outputs=(node.name,), supported=supported[node.name]
    )


def step(node: fx.Node, engine: int | None, supported: bool) -> Step:
    """A node as a value."""
    return Step(
        name=node.name,
        operator=operator_of(node),
        module=layer_name(node) or module_path(node),
        inputs=tuple(source.name for source in node.all_input_nodes),
        bytes=size_of(node.meta.get("val")),
        engine=engine,
        supported=supported,
        grid=Call.of(node.args).spec.dtype if is_call(node) else None,
    )


def operator_of(node: fx.Node) -> str:
    """Such as ``aten.relu.default`` or ``_operator.getitem``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    module, name = (getattr(node.target, key, "") for key in ("__module__", "__name__"))
    return f"{module}.{name}"


def size_of(value: Any) -> int:
    """The bytes of a tensor, or of several; symbols stand for the sizes of the example."""
    if isinstance(value, torch.Tensor):
        sizes = [n if isinstance(n, int) else int(n.node.hint or 1) for n in value.shape]
        return value.element_size() * math.prod(sizes)
    if isinstance(value, tuple | list):
        return sum(size_of(item) for item in value)
    return 0


def _is_supported(node: fx.Node, constants: Collection[fx.Node], executed: Collection[str]) -> bool:
    name = operator_of(node)
    if node.target is operator.getitem:
        return _is_supported(node.all_input_nodes[0], constants, executed)
    if name in executed or f"torch.ops.{name}" in executed:
        return False
    if is_call(node):
        call = Call.of(node.args)
        return call.scale in constants and is_on_a_grid_of_tensorrt(call, call.x in constants)
    return name in CONVERTED or name in REWRITTEN


def _is_dropped(node: fx.Node) -> bool:
    """Assertions, which are removed before the graph is shared out."""
    return "assert" in operator_of(node)


def _constants(program: ExportedProgram) -> set[fx.Node]:
    """What depends on constants alone, and is folded: all but what quantkit protects."""
    inputs = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    }
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            constant = node.name not in inputs
        else:
            constant = (
                node.op == "call_function"
                and not is_call(node)
                and all(source in found for source in node.all_input_nodes)
            )
        if constant:
            found.add(node)
    return found
