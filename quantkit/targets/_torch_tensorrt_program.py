"""Programs of ``torch.export`` with quantkit's operator in place of quantizers and Q/DQ pairs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from quantkit.errors import ExportError
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.capture import recapture
from quantkit.graph.edit import Emitter
from quantkit.model import QuantizedModel
from quantkit.operators import OPERATOR, spec_arguments
from quantkit.settling import settled
from quantkit.targets._torch_tensorrt_pairs import OnGrid, on_grid

aten = torch.ops.aten


def program_of(model: QuantizedModel) -> ExportedProgram:
    """A calibrated model as a program, each quantizer one node of the operator.

    Raises:
        ExportError: the model is not calibrated.
        CaptureError: the graph does not export.
    """
    model, training = calibrated(model), model.training
    model.eval()
    try:
        captured = model.capture
        graph = operator_graph(model.graph)
        device = next((p.device for p in graph.parameters()), torch.device("cpu"))
        args, kwargs = torch.utils._pytree.tree_map_only(
            Tensor, lambda t: t.to(device), (captured.args, captured.kwargs)
        )
        return recapture(graph, args, kwargs, captured.dynamic_shapes)
    finally:
        model.train(training)


def calibrated(model: QuantizedModel) -> QuantizedModel:
    """The model settled.

    Raises:
        ExportError: the model is not calibrated.
    """
    missing = [name for name, q in model.quantizers.items() if not q.calibrated]
    if missing:
        raise ExportError(
            f"the model is not calibrated ({missing[0]} and {len(missing) - 1} more have no grid); "
            "run calibrate(model, batches) first"
        )
    return settled(model)


def operator_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph (sharing its parameters) with the operator in place of quantizers."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph._codegen = copy.copy(module.graph._codegen)
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        quantizer = module.get_submodule(str(node.target))
        if not isinstance(quantizer, FakeQuantize):
            continue
        with graph.inserting_before(node):
            grid = [graph.get_attr(f"{node.target}.{name}") for name in ("scale", "zero_point")]
            arguments = (node.args[0], *grid, *spec_arguments(quantizer.spec))
            new = graph.call_function(OPERATOR, arguments)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return fx.GraphModule(module, graph)


def with_operators(program: ExportedProgram) -> int:
    """Put the operator in place of the Q/DQ pairs of a program, which changes; how many there are.

    A constant that is stored on its grid stays so: the operator goes behind what makes floats of
    it, which then is of constants alone, and is folded.
    """
    graph, found = program.graph_module.graph, 0
    for node in list(graph.nodes):
        grid = on_grid(program, node)
        if grid is None:
            continue
        emit = Emitter(graph, node.next, like=node)
        spec, following = grid.spec, emit.before
        scale = _scales(emit, node, grid)
        zero_point = _zeros(emit, node, grid.zero_point, scale)
        with graph.inserting_before(following):
            arguments = (grid.values, scale, zero_point, *spec_arguments(spec))
            new = graph.call_function(OPERATOR, arguments)
        new.meta.update(node.meta)
        for reader in list(node.users):
            if reader is not new:
                reader.replace_input_with(node, new)
        program.graph_signature.replace_all_uses(node.name, new.name)
        found += 1
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return found


def _scales(emit: Emitter, node: fx.Node, grid: OnGrid) -> fx.Node:
    """The scales as a float32 tensor of the shape that the operator takes."""
    value: Any = grid.scale
    if not isinstance(value, fx.Node):
        return _full(emit, node, float(value), torch.float32)
    if value.meta["val"].dtype is not torch.float32:
        value = emit(aten._to_copy.default, value, dtype=torch.float32)
    wanted = {"tensor": 0, "channel": 1}.get(grid.spec.granularity)
    if wanted is not None and value.meta["val"].dim() != wanted:
        return emit(aten.view.default, value, [-1] * wanted)
    assert isinstance(value, fx.Node)
    return value


def _zeros(emit: Emitter, node: fx.Node, value: Any, scale: fx.Node) -> fx.Node:
    """The zero-points as an int32 tensor of the shape of the scales."""
    if isinstance(value, fx.Node):
        have = value.meta["val"].dtype
        return (
            value if have is torch.int32 else emit(aten._to_copy.default, value, dtype=torch.int32)
        )
    return _full(emit, node, int(value), torch.int32, list(scale.meta["val"].shape))


def _full(
    emit: Emitter, node: fx.Node, value: float, dtype: torch.dtype, shape: Sequence[int] = ()
) -> fx.Node:
    device = node.meta["val"].device
    return emit(aten.full.default, list(shape), value, dtype=dtype, device=device)
