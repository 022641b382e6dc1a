"""Load a saved quantized model into one that is only prepared, whatever corrections it had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, fx

from quantkit.errors import ModelFileError
from quantkit.graph.batchnorm import layer_bias
from quantkit.graph.edit import constant
from quantkit.model import LAYER, QuantizedModel, keys_of
from quantkit.numerics import QParams
from quantkit.passes._biases import put_bias
from quantkit.passes.center import Center
from quantkit.spec import shiftable


def restore(model: QuantizedModel, path: Path | str) -> None:
    """Make a prepared model the one that was saved: its grids, its weights, and its structure.

    ``load`` takes a state of like structure. Some corrections change it, a bias where there was
    none and the shifts of ``center``: they are told by the state, and are made again here.

    Args:
        model: ``prepare`` made it, of the same model and recipe.
        path: what ``QuantizedModel.save`` wrote.

    Raises:
        ModelFileError: the file is not readable, or is of another model or recipe.

    Example:
        >>> import tempfile, quantkit as qk
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> x = torch.randn(8, 32)
        >>> saved = qk.quantize(net, "int8_centered", calibration=[x])
        >>> fresh = qk.prepare(net, "int8_centered", example_inputs=(x,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved.save(f"{folder}/net.qk")
        ...     restore(fresh, f"{folder}/net.qk")
        >>> torch.equal(fresh(x), saved(x))
        True
    """
    state = _read(path)
    with torch.no_grad():
        _give_biases(model, state)
        if model.recipe.centers and any(name.startswith("centers.") for name in state):
            _give_grids(model, state)
            Center().apply(model, [])
    model.load(path)


def _read(path: Path | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{path}: not a safetensors file ({error}); give one that save wrote"
        ) from error


def _give_biases(model: QuantizedModel, state: Mapping[str, Tensor]) -> None:
    """Zeros, to be loaded over, where a correction had to give a layer a bias."""
    module = model.graph
    for node in module.graph.nodes:
        if LAYER not in node.meta or layer_bias(node) is not None:
            continue
        source = _weight_of(node)
        weight = None if source is None else constant(module, source)
        name = "" if source is None else str(source.target).removesuffix("weight") + "bias"
        found = state.get(f"graph.{name}")
        if source is not None and weight is not None and found is not None and name:
            put_bias(module, node, source, torch.zeros_like(found).to(weight.dtype))
    module.recompile()


def _weight_of(node: fx.Node) -> fx.Node | None:
    """What a layer's weight is read from, before its quantizer."""
    source = node.args[1]
    while isinstance(source, fx.Node) and source.op != "get_attr":
        source = source.all_input_nodes[0] if source.all_input_nodes else None
    return source if isinstance(source, fx.Node) else None


def _give_grids(model: QuantizedModel, state: Mapping[str, Tensor]) -> None:
    """The asymmetric grids that were centered: the same steps, and a zero-point of ``-c / s``."""
    prefix = next(n for n in model.state_dict() if n.endswith(".scale")).rsplit(".", 2)[0]
    keys = keys_of(model.plan.grids)
    for grid, quantizer in model.quantizers.items():
        scale = state.get(f"{prefix}.{keys[grid]}.scale")
        if scale is None or not shiftable(quantizer.spec):
            continue
        shift = state.get(f"centers.{keys[grid]}", torch.zeros(()))
        zero = torch.round(-shift.double() / scale.double()).to(torch.int32)
        quantizer.set_qparams(QParams(scale=scale, zero_point=zero, spec=quantizer.spec))
        quantizer.quantize_values()
