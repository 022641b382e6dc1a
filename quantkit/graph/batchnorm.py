"""Batch-norm behind a layer: where it can be folded, and a form of it that still trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from quantkit.errors import RecipeError
from quantkit.graph.edit import (
    Emitter,
    add_constant,
    constant,
    evaluate_constant,
    has_constant,
    readers,
    set_constant,
)

aten = torch.ops.aten

#: The dimension of each layer's weight that counts output channels.
OUTPUT_AXIS: dict[Any, int] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    aten.conv1d.padding: 0,
    aten.conv2d.padding: 0,
    aten.conv3d.padding: 0,
    aten.linear.default: 0,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
}

#: Where the node of a layer that batch-norm was folded into keeps the `Normal` of its result.
NORMAL = "quantkit_normal"


class Normal(NamedTuple):
    """How a layer's results spread in each output channel, as its batch-norm had learned it.

    Attributes:
        mean: ``(channels,)``; beta.
        std: ``(channels,)``; gamma without its sign.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Foldable:
    """A batch-norm in evaluation mode whose layer can take it in.

    Attributes:
        norm, layer: the nodes.
        weight, bias: the constants that the layer reads; ``bias`` is ``None`` where it has none.
        gamma, beta, mean, variance: the nodes that the batch-norm reads; the first two, or one of
            them, are ``None`` where it has none.
        axis: of the weight, that counts output channels.
    """

    norm: fx.Node
    layer: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    gamma: fx.Node | None
    beta: fx.Node | None
    mean: fx.Node
    variance: fx.Node
    axis: int

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return float(self.norm.args[7])  # type: ignore[arg-type]

    @property
    def momentum(self) -> float:
        """Of the running statistics."""
        return float(self.norm.args[6])  # type: ignore[arg-type]


def foldable(module: fx.GraphModule, norm: fx.Node) -> Foldable | None:
    """What a batch-norm can be folded into: a layer of constants, whose result goes nowhere else.

    The graph is in evaluation mode: the running statistics are what is folded.
    """
    if norm.target is not aten.batch_norm.default or norm.args[5]:
        return None
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or len(layer.users) != 1:
        return None
    weight = layer.args[1] if len(layer.args) > 1 else None
    if layer.target not in OUTPUT_AXIS or not isinstance(weight, fx.Node):
        return None
    if constant(module, weight) is None or readers(module, weight) != 1:
        return None  # computed, or a weight that another layer shares
    if layer.target is aten.linear.default and len(norm.meta["val"].shape) != 2:
        return None  # batch-norm counts channels on dimension 1, a linear layer on the last
    bias = layer_bias(layer)
    gamma, beta, mean, variance = norm.args[1:5]
    needed = [mean, variance, *(n for n in (bias, gamma, beta) if n is not None)]
    if any(constant(module, node) is None for node in needed):
        return None
    axis = OUTPUT_AXIS[layer.target]
    return Foldable(norm, layer, weight, bias, gamma, beta, mean, variance, axis)  # type: ignore[arg-type]


def layer_bias(layer: fx.Node) -> Any:
    """The bias that a layer reads."""
    return layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")


def set_bias(layer: fx.Node, bias: fx.Node) -> None:
    """Let a layer read another bias."""
    if "bias" in layer.kwargs:
        layer.update_kwarg("bias", bias)
    else:
        layer.args = (*layer.args[:2], bias, *layer.args[3:])


def batch_norm_behind(
    y: Tensor,
    factor: Tensor,
    shift: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """The batch-norm behind a layer that has taken its running statistics in.

    ``y`` is the layer's result with weights times ``factor`` and with ``shift`` for a bias. In
    evaluation mode (and where it is frozen) that is the result. In training mode the layer's own
    result is got back from it, and normalized by the statistics of the batch (Krishnamoorthi 2018,
    arXiv:1806.08342, section 3.2.2), while the weights were quantized in the scale that they will
    be deployed in.

    Args:
        y: ``(N, channels, ...)``.
        factor: ``gamma / sqrt(variance + eps)``, ``(channels,)``, as all that follow.
        shift: ``beta + (bias - mean) * factor``.
        bias: the layer's own.
        gamma: of the batch-norm, as all that follow.
        beta: its bias.
        mean: the running mean.
        variance: the running variance.
        training: whether to use the statistics of the batch.
        momentum: how far the running statistics move towards those.
        eps: what is added to the variance.

    Raises:
        RecipeError: in training mode under ``torch.compile`` with ``fullgraph=True``.
    """
    if not training:
        return y
    if torch.compiler.is_compiling():
        # Its backward pass would compute the weights anew, from running statistics that the forward
        # pass has moved meanwhile (torch 2.13). Without fullgraph=True the compiler takes this as a
        # reason to run the model as it is, which is right.
        raise RecipeError(
            "torch.compile gets gradients wrong where batch-norm is kept and not frozen; call "
            "freeze_batch_norm(model) before, or fold it (passes: [fold_batchnorm])"
        )
    form = [1, -1] + [1] * (y.dim() - 2)
    # No gradient of these: what is normalized by its batch does not depend on its scale and shift.
    # (gamma may be 0, and then the factor.)
    inverse = 1.0 / torch.where(factor == 0, torch.ones_like(factor), factor).detach()
    offset = -shift.detach() * inverse if bias is None else bias.detach() - shift.detach() * inverse
    own = torch.addcmul(offset.view(form), y, inverse.view(form))
    return F.batch_norm(own, mean, variance, gamma, beta, True, momentum, eps)


def keep(module: fx.GraphModule, found: Foldable) -> None:
    """Let the layer take the running statistics in by computing its weight from them, and keep the
    batch-norm behind it as `batch_norm_behind`.
    """  # noqa: D205
    emit = Emitter(module.graph, found.layer)
    factor = emit(aten.rsqrt.default, emit(aten.add.Scalar, found.variance, found.eps))
    if found.gamma is not None:
        factor = emit(aten.mul.Tensor, factor, found.gamma)
    distance = emit(aten.neg.default, found.mean)
    if found.bias is not None:
        distance = emit(aten.add.Tensor, distance, found.bias)
    shift = emit(aten.mul.Tensor, distance, factor)
    if found.beta is not None:
        shift = emit(aten.add.Tensor, shift, found.beta)
    rank = found.weight.meta["val"].dim()
    spread = emit(aten.view.default, factor, [-1] + [1] * (rank - 1))
    weight = emit(aten.mul.Tensor, found.weight, spread)
    found.layer.update_arg(1, weight)
    set_bias(found.layer, shift)
    behind = Emitter(module.graph, found.norm)(
        batch_norm_behind, found.layer, factor, shift, found.bias, found.gamma, found.beta,
        found.mean, found.variance, False, found.momentum, found.eps,
    )  # fmt: skip
    found.norm.replace_all_uses_with(behind)
    module.graph.erase_node(found.norm)


def kept(module: fx.GraphModule) -> list[fx.Node]:
    """The batch-norms that `keep` has left."""
    return [node for node in module.graph.nodes if node.target is batch_norm_behind]


def fold_kept(module: fx.GraphModule) -> int:
    """Fold what `keep` has left for good, with the weights of now; returns how many."""
    found = kept(module)
    for node in found:
        _fold_kept(module, node)
    if found:
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
    return len(found)


def _fold_kept(module: fx.GraphModule, node: fx.Node) -> None:
    layer: Any = node.args[0]
    shift: Any = node.args[2]
    reader: fx.Node = layer.args[1]
    quantizer = reader if reader.op == "call_module" else None
    product: Any = reader if quantizer is None else quantizer.args[0]
    weight: Any = product.args[0]
    path, bias = str(weight.target), node.args[3]
    folded, folded_bias = evaluate_constant(module, product), evaluate_constant(module, shift)
    set_constant(module, path, folded.clone())
    (layer if quantizer is None else quantizer).replace_input_with(product, weight)
    if isinstance(bias, fx.Node) and readers(module, bias) == 2:  # by the shift, and behind
        set_constant(module, str(bias.target), folded_bias.clone())
        set_bias(layer, bias)
    else:
        beside = bias_path(module, path)
        set_bias(layer, add_constant(module, beside, folded_bias.clone(), before=layer))
    node.replace_all_uses_with(layer)
    module.graph.erase_node(node)


def bias_path(module: fx.GraphModule, weight: str) -> str:
    """Where a layer that has none can be given a bias."""
    beside = f"{weight.rpartition('.')[0]}.bias".lstrip(".")
    taken = beside == weight or has_constant(module, beside)
    return f"{weight}_folded_bias" if taken else beside
