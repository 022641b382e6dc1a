"""Self-distillation: the float model teaches its quantized self, by outputs and by features."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from quantkit.errors import RecipeError
from quantkit.model import QuantizedModel, copied
from quantkit.training_choice import TrainingChoice


class WithFeatures:
    """A quantized model that returns chosen tensors beside its outputs, sharing its parameters.

    Args:
        model: the quantized model.
        features: globs over paths of modules, such as ``layer3`` or ``blocks.*``; the result of
            each that matches is a feature.

    Raises:
        RecipeError: one matches no module of the captured graph.
    """

    def __init__(self, model: QuantizedModel, features: Sequence[str]) -> None:
        self._model = model
        self._nodes = feature_nodes(model.graph, features)
        self._graph = model.graph
        self._mode: tuple[bool, bool] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The model's outputs, and its features."""
        model = self._model
        if not self._nodes:
            return model(*args, **kwargs), []
        mode = (model.training, model.batch_norm_frozen)
        if mode != self._mode:  # the graph itself says which
            self._graph = _returning(model.graph, self._nodes)
            self._mode = mode
        flat, features = self._graph(*args, **kwargs)
        spec = model.graph.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        return pytree.tree_unflatten(flat, spec), features


def feature_nodes(graph: fx.GraphModule, features: Sequence[str]) -> list[fx.Node]:
    """The last node of each module whose path matches, in the order of the graph."""
    last: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op not in {"call_function", "call_module"} or not _is_float(node):
            continue
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            last[path] = node
    chosen: dict[fx.Node, None] = {}
    for pattern in features:
        found = [node for path, node in last.items() if path and fnmatch.fnmatchcase(path, pattern)]
        if not found:
            paths = ", ".join(path for path in last if path)
            raise RecipeError(
                f"no module {pattern!r} in the captured model to take a feature of; there are: "
                f"{paths[:400]}"
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


class Teacher:
    """What a quantized model is compared with while it trains.

    Attributes:
        own: the quantized model with its quantizers off, where that is the teacher.

    Args:
        model: the quantized model, as it is before training.
        teacher: the float model; ``None``: the quantized one itself, with its quantizers off.
        features: see `WithFeatures`; only without a ``teacher`` of another make.
        choice: weights and kinds of the losses.
    """

    def __init__(
        self,
        model: QuantizedModel,
        teacher: nn.Module | None,
        features: Sequence[str],
        choice: TrainingChoice,
    ) -> None:
        self.choice = choice
        self.own: QuantizedModel | None = None
        self.student = WithFeatures(model, features)
        if teacher is not None:
            if features:
                raise RecipeError(
                    "features are compared with those of the float model itself; leave teacher "
                    "out, or features"
                )
            self._teacher: nn.Module | WithFeatures = copy.deepcopy(teacher)
            self._teacher.eval().requires_grad_(False)
            return
        own = copied(model).eval().requires_grad_(False)
        own.simulate(False)
        for quantizer in own.quantizers.values():
            quantizer.observe(False)
        self.own = own
        self._teacher = WithFeatures(own, features)

    def outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
        """The teacher's outputs and features."""
        with torch.no_grad():
            if isinstance(self._teacher, WithFeatures):
                return self._teacher(*args, **kwargs)
            return self._teacher(*args, **kwargs), []

    def loss(
        self, output: Any, features: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The weighted differences of outputs and features to the teacher's; a scalar."""
        theirs, their_features = self.outputs(args, kwargs)
        pairs = _paired(_floats(output), _floats(theirs))
        total = self.choice.teacher_weight * sum(
            (self._difference(own, other) for own, other in pairs), start=torch.zeros(())
        )
        for own, other in zip(features, their_features, strict=True):
            total = total + self.choice.feature_weight * relative_error(own, other)
        return total

    def _difference(self, own: Tensor, other: Tensor) -> Tensor:
        if self.choice.teacher_loss == "mse":
            return relative_error(own, other)
        if own.dim() == 0 or own.shape[class_dimension(own)] == 1:
            raise RecipeError(
                f"an output of shape {tuple(own.shape)} is no logits of several classes, of which "
                "teacher_loss: kl could learn; set teacher_loss: mse in the recipe's training"
            )
        return divergence(own, other, self.choice.temperature)


def divergence(own: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """``T² KL(softmax(other / T) ‖ softmax(own / T))``, the mean over all but the classes.

    Hinton et al. 2015, arXiv:1503.02531, section 2. Classes that the teacher masks (``-inf``) do
    not count.

    Example:
        >>> divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 4.0]])).abs().item() < 1e-6
        True
    """
    dimension = class_dimension(own)
    own, other = (x.float().movedim(dimension, -1) / temperature for x in (own, other))
    masked = other == -torch.inf
    own, other = (
        F.log_softmax(x.masked_fill(masked, -1e9).flatten(0, -2), dim=-1) for x in (own, other)
    )
    return temperature**2 * F.kl_div(own, other, reduction="batchmean", log_target=True)


def class_dimension(logits: Tensor) -> int:
    """Which dimension counts classes: the last of ``(N, classes)`` and ``(N, T, classes)``; of an
    image ``(N, classes, H, W)`` the second.
    """  # noqa: D205
    return 1 if logits.dim() > 3 else logits.dim() - 1


def relative_error(own: Tensor, other: Tensor) -> Tensor:
    """``sum((own - other)²) / sum(other²)``, a scalar: one over the SQNR.

    What is masked in ``other`` (``-inf``) does not count.

    Example:
        >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).item()
        0.1...
    """
    masked = other == -torch.inf
    own, other = (x.float().masked_fill(masked, 0.0) for x in (own, other))
    return (own - other).square().sum() / other.square().sum().clamp(min=1e-12)


def _paired(own: list[Tensor], other: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Outputs with the teacher's."""
    if [x.shape for x in own] != [x.shape for x in other]:
        told, theirs = (", ".join(str(tuple(x.shape)) for x in found) for found in (own, other))
        raise RecipeError(
            f"the model's outputs have the shapes {told}, the teacher's {theirs}; give a teacher "
            "of the same outputs, or leave it out: the float model itself teaches then"
        )
    return list(zip(own, other, strict=True))


def _floats(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def _returning(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph with more results; it shares the parameters and quantizers."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(module.graph, mapping)
    graph.output((result, [mapping[node] for node in nodes]))
    codegen = copy.copy(module.graph._codegen)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=None)  # type: ignore[attr-defined]
    graph._codegen = codegen
    return fx.GraphModule(module, graph)
