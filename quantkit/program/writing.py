"""Write a quantized model as a program of ``torch.export`` with standard Q/DQ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

import quantkit
from quantkit.errors import CaptureError, ExportError
from quantkit.fake_quantize import FakeQuantize
from quantkit.files import replacing
from quantkit.graph.abstract import COMPUTE, Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.capture import recapture
from quantkit.graph.edit import evaluate_constant
from quantkit.interfaces import ExportForm
from quantkit.model import LAYER, QuantizedModel
from quantkit.program._quantizing import Writer
from quantkit.settling import settled

#: Where a node of a program keeps the plan's name of its layer: the key of ``meta["custom"]``,
#: the one part of a node's metadata that is written into files for others than torch.
LAYER_KEY = "quantkit.layer"


def to_program(
    model: QuantizedModel, form: ExportForm = "onnxruntime"
) -> torch.export.ExportedProgram:
    """The model as a program of PyTorch's own operators, which anything can run that runs those.

    Each quantizer becomes ``quantize`` and ``dequantize`` of ``torch.ops.quantized_decomposed``
    (or plain ATen operators where there is none, as for FP8); weights are stored as integers, with
    ``dequantize`` alone. The values are those of the simulation, up to the rounding of float sums
    that run in another order: the grids are the same to the bit. ``model`` does not change.

    Args:
        model: calibrated.
        form: ``onnxruntime``: activations in uint8 (a symmetric int8 grid with zero-point 128 is
            the same grid), which Inductor's kernels on x86 take; ``tensorrt``: int8, zero-point 0.

    Raises:
        ExportError: it is not calibrated, not in float32, a grid has no such form, or the graph
            does not export.

    Example:
        >>> import quantkit as qk
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        >>> qmodel = qk.quantize(net, "int8_ptq", calibration=[torch.randn(8, 32)])
        >>> x = torch.randn(4, 32)
        >>> torch.equal(to_program(qmodel).module(check_guards=False)(x), qmodel(x))
        True
    """
    if form not in get_args(ExportForm):
        raise ExportError(f"no form {form!r}; there are: {', '.join(get_args(ExportForm))}")
    _require_exportable(model)
    model = settled(model)
    training = model.training
    model.eval()
    try:
        graph = _with_operators(model, form)
        return _captured(model, graph)
    finally:
        model.train(training)


def export_pt2(
    model: QuantizedModel, path: Path | str, *, form: ExportForm = "onnxruntime"
) -> Path:
    """Write `to_program` as a ``.pt2`` file, with plan and recipe in it.

    ``torch.export.load`` reads it back once the operators are registered:
    ``import quantkit.program.operators``.

    Args:
        model: calibrated.
        path: ends in ``.pt2``; written to a temporary file first, then renamed.
        form: of the Q/DQ, see `to_program`.

    Raises:
        ExportError: as `to_program`, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ExportError(f"{path}: torch reads programs from files that end in .pt2; name it so")
    program = to_program(model, form)
    about = {
        "quantkit.version": quantkit.__version__,
        "quantkit.recipe": model.recipe.name,
        "quantkit.recipe.yaml": model.recipe.to_yaml(),
        "quantkit.form": form,
        "quantkit.plan": model.plan.to_json(),
    }
    save(program, path, about)
    return path


def save(program: torch.export.ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Write a program and texts beside it, whole or not at all.

    Raises:
        ExportError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files=about)


def _require_exportable(model: QuantizedModel) -> None:
    missing = [name for name, quantizer in model.quantizers.items() if not quantizer.calibrated]
    if missing:
        raise ExportError(
            f"the model is not calibrated ({missing[0]} and {len(missing) - 1} more have no grid); "
            "run calibrate(model, batches) first"
        )
    for name, parameter in model.graph.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ExportError(
                f"{name} is {dtype}, and Q/DQ is written in float32; call model.float() before "
                "export"
            )


def _with_operators(model: QuantizedModel, form: ExportForm) -> fx.GraphModule:
    """A copy of the graph, which shares its parameters, with operators in place of quantizers."""
    module = model.graph
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, mapping))
    graph._codegen = copy.copy(module.graph._codegen)
    result = fx.GraphModule(module, graph)
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        quantizer = module.get_submodule(str(node.target))
        if not isinstance(quantizer, FakeQuantize):
            continue
        copied = mapping[node]
        holder = nn.Module()  # of what this quantizer stores, under its own name
        _replace_submodule(result, str(node.target), holder)
        writer = Writer(graph, copied, str(node.target), holder)
        if quantizer.observer is None:
            weight = evaluate_constant(module, node.args[0])
            plain = any(kind_of(user) is Kind.CONV_TRANSPOSE for user in node.users)
            new = writer.weight(weight, quantizer.qparams, plain=plain)
        else:
            new = writer.activation(quantizer.qparams, form, quantizer.name)
        copied.replace_all_uses_with(new)
        graph.erase_node(copied)
    graph.eliminate_dead_code()
    # Made anew: it takes over what the graph still reads, and so no float weight.
    return fx.GraphModule(result, graph)


def _replace_submodule(root: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, name, new)


def _captured(model: QuantizedModel, graph: fx.GraphModule) -> torch.export.ExportedProgram:
    captured = model.capture
    # The model may have moved since its capture.
    device = next((t.device for t in (*graph.parameters(), *graph.buffers())), torch.device("cpu"))
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: t.to(device), (captured.args, captured.kwargs)
    )
    try:
        program = recapture(graph, args, kwargs, captured.dynamic_shapes)
    except CaptureError as error:
        raise ExportError(f"the quantized graph does not export: {error}") from error
    if device.type != "cpu":
        program = move_to_device_pass(program, "cpu")
    name_layers(program, [node.meta.get(LAYER) for node in compute_nodes(model.graph)])
    return program


def compute_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The layers of a graph: convolutions and products, in order."""
    return [node for node in module.graph.nodes if kind_of(node) in COMPUTE]


def name_layers(program: torch.export.ExportedProgram, names: list[Any]) -> None:
    """Let each layer carry its name; capturing a graph again keeps its layers, but no metadata."""
    for node in program.graph.nodes:
        # Of the capture itself: lines of generated code, and switches of torch's tracer.
        node.meta.pop("stack_trace", None)
        node.meta.pop("custom", None)
    for node, name in zip(compute_nodes(program.graph_module), names, strict=True):
        if name is not None:
            node.meta["custom"] = {LAYER_KEY: name}


def layer_name(node: fx.Node) -> str | None:
    """The plan's name of a layer, where its node carries one."""
    return (node.meta.get("custom") or {}).get(LAYER_KEY)
