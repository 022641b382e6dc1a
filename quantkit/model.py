"""The quantized model: an ordinary ``nn.Module`` whose graph holds the quantizers of a plan."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from quantkit import sums
from quantkit.errors import ModelFileError
from quantkit.fake_quantize import FakeQuantize
from quantkit.files import replacing
from quantkit.graph.abstract import COMPUTE, Kind
from quantkit.graph.aten import Description, kind_of
from quantkit.graph.batchnorm import fold_kept, kept
from quantkit.graph.capture import Capture, set_training
from quantkit.graph.edit import constant as get_constant
from quantkit.graph.edit import evaluate_constant, replace_input
from quantkit.graph.plan import Placement, QuantizedTensor
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer, found_qparams
from quantkit.recipe import Recipe

#: Where a node of the graph keeps the name that the plan has for its layer.
LAYER = "quantkit_layer"
#: Where a quantizer's node keeps the plan's name for the tensor that it puts on its grid.
TENSOR = "quantkit_tensor"
#: What may stand between a quantizer and the layer that computes with its values.
MOVING = frozenset({Kind.MOVE, Kind.MAX_POOL, Kind.PAD, Kind.SLICE})


@dataclass(frozen=True)
class Judged:
    """What a step did to the model's outputs on data that it had not learned from.

    Attributes:
        step: a rounding or pass.
        before: SQNR of the outputs without it, in dB.
        after: with it.
        kept: whether it was kept; if not, the model is as it was before.
    """

    step: str
    before: float
    after: float
    kept: bool

    def __str__(self) -> str:
        """Such as ``gptq: 29.3 to 30.1 dB``."""
        told = f"{self.step}: {self.before:.1f} to {self.after:.1f} dB"
        return told if self.kept else f"{told}, so it was not kept"


class QuantizedModel(nn.Module):
    """A captured model with a ``FakeQuantize`` wherever the plan says.

    It trains, deep-copies, moves to a device and saves by ``state_dict`` as any module does.
    Parameters keep the names that they had in the float model, behind ``graph.``.

    Attributes:
        graph: the captured graph, with its quantizers in it.
        plan: what is quantized, and why; ``print(model.plan)``.
        recipe: every choice that made it.
        capture: example inputs and dynamic shapes, for export.
        judged: the roundings and corrections that learned from data, and what each was worth.
    """

    def __init__(self, capture: Capture, plan: Placement, recipe: Recipe) -> None:
        super().__init__()
        self.graph = capture.module
        self.plan = plan
        self.recipe = recipe
        self.capture = capture
        self.batch_norm_frozen = False
        self.judged: tuple[Judged, ...] = ()

    def become(self, other: QuantizedModel) -> None:
        """Be what another model is, which is not to be used any more."""
        self.graph, self.plan, self.capture = other.graph, other.plan, other.capture

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model returns for these inputs, computed on the grids."""
        return self.graph(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and batch-norm, as in any module."""
        super().train(mode)
        set_training(self.graph, mode, batch_norm=mode and not self.batch_norm_frozen)
        return self

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Use the running statistics in training mode as well, and let them be.

        Gamma and beta still train. Batch-norm that was folded is frozen in any case.
        """
        self.batch_norm_frozen = frozen
        self.train(self.training)

    def get_extra_state(self) -> Tensor:
        """``[batch-norm is frozen]`` as uint8."""
        return torch.tensor([self.batch_norm_frozen], dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` gave."""
        self.freeze_batch_norm(bool(state[0]))

    @property
    def quantizers(self) -> dict[str, FakeQuantize]:
        """The quantizers by the name of their grid."""
        modules = next(m for m in self.graph.children() if isinstance(m, Quantizers))
        return {grid: modules[key] for grid, key in keys_of(self.plan.grids).items()}  # type: ignore[misc]

    def of_role(self, role: str) -> Iterator[FakeQuantize]:
        """The quantizers of weights, or those of activations."""
        quantizers = self.quantizers
        return (quantizers[g] for g, members in self.plan.grids.items() if members[0].role == role)

    def layers(self) -> Iterator[Layer]:
        """The layers that the plan quantizes, with their quantizers and bias."""
        for node in self.graph.graph.nodes:
            name = node.meta.get(LAYER)
            if name is None or not self.plan.decision(name).quantized:
                continue
            weight = self._quantizer_of(node.args[1])
            # Two activations: each has a grid of its own, and neither is a weight.
            constant = weight is not None and weight.observer is None
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            source = node.args[1].args[0] if constant else node.args[1]
            yield Layer(
                name=name,
                node=node,
                activation=self._quantizer_before(node.args[0]),
                weight=weight if constant else None,
                weight_source=source,
                weight_value=get_constant(self.graph, source),
                bias=get_constant(self.graph, bias),
            )

    def _quantizer_of(self, node: fx.Node) -> FakeQuantize | None:
        if node.op != "call_module":
            return None
        module = self.graph.get_submodule(str(node.target))
        return module if isinstance(module, FakeQuantize) else None

    def _quantizer_before(self, node: Any) -> FakeQuantize | None:
        """The quantizer of an activation, before what only moves its values."""
        while isinstance(node, fx.Node) and node.op != "placeholder":
            if (found := self._quantizer_of(node)) is not None:
                return found
            if kind_of(node) not in MOVING or not node.args:
                return None
            node = node.args[0]
        return None

    def float_state(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers of the model without those of its quantizers."""
        own = next(n for n, m in self.graph.named_children() if isinstance(m, Quantizers))
        for name, value in (*self.graph.named_parameters(), *self.graph.named_buffers()):
            if not name.startswith(f"{own}."):
                yield name, value

    def simulate(self, enabled: bool = True) -> None:
        """Round to the grids, or pass floats through to see the float model's result."""
        for quantizer in self.quantizers.values():
            quantizer.quantize_values(enabled and quantizer.calibrated)

    def save(self, path: Path | str) -> None:
        """Write parameters and grids as safetensors; load into a model prepared alike."""
        from safetensors.torch import save_file

        state = {k: v.detach().contiguous().clone() for k, v in self.state_dict().items()}
        about = {"quantkit.recipe": self.recipe.name, "quantkit.plan": self.plan.to_json()}
        if not kept(self.graph):
            about["quantkit.batch_norm"] = "folded"
        with replacing(Path(path)) as temporary:
            save_file(state, temporary, metadata=about)

    def load(self, path: Path | str) -> None:
        """Read what ``save`` wrote.

        Raises:
            ModelFileError: the file is not readable, or is of another model or recipe; the model
                is then as it was.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about, state = file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelFileError(
                f"{path}: not a safetensors file ({error}); give one that save wrote"
            ) from error
        # Not in files of earlier versions.
        state.setdefault("_extra_state", torch.zeros(1, dtype=torch.uint8))
        if (problem := self._misfit(about, state)) is not None and self._fold_like(about, state):
            problem = self._misfit(about, state)
        if problem is not None:
            raise ModelFileError(
                f"{path}: made for another model or recipe ({problem}); prepare the same model "
                "with the same recipe before load"
            )
        self.load_state_dict(state)

    def _fold_like(self, about: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
        """Fold batch-norm that was kept, where the saved model's was and it is this model's."""
        if about.get("quantkit.batch_norm") != "folded" or not kept(self.graph):
            return False
        trial = copied(self)
        fold_kept(trial.graph)
        if trial._misfit(about, state) is not None:
            return False
        fold_kept(self.graph)
        return True

    def _misfit(self, about: Mapping[str, str], state: Mapping[str, Tensor]) -> str | None:
        """Why a saved state is not one of this model. Grids of other formats have like shapes."""
        own = self.state_dict()
        # What a grid has beside its scale while it learns, loading makes of its own accord.
        learned = {n for n in own.keys() | state.keys() if n.rpartition(".")[2] == "lowest"}
        state = {name: value for name, value in state.items() if name not in learned}
        if odd := sorted((own.keys() - learned) ^ state.keys()):
            return f"{odd[0]} is only in {'the file' if odd[0] in state else 'the model'}"
        for name, value in state.items():
            if value.shape != own[name].shape:
                return f"{name} is {tuple(value.shape)} there, {tuple(own[name].shape)} here"
            if name.startswith("centers.") and not torch.equal(value, own[name].to(value.device)):
                there, here = f"{float(value):.6g} there", f"{float(own[name]):.6g} here"
                return f"{name.removeprefix('centers.')} is centered at {there}, {here}"
        if "quantkit.plan" in about:
            theirs = Placement.from_json(about["quantkit.plan"]).grids
            for grid, members in self.plan.grids.items():
                if grid in theirs and theirs[grid][0].spec != members[0].spec:
                    return f"{grid} is {theirs[grid][0].spec} there, {members[0].spec} here"
        return None

    def __repr__(self) -> str:
        """The plan: what is quantized, what is not, and why."""
        calibrated = all(q.calibrated for q in self.quantizers.values())
        state = "calibrated" if calibrated else "not calibrated"
        return f"QuantizedModel({state})\n{self.plan}"


def copied(model: QuantizedModel) -> QuantizedModel:
    """A copy that owns its parameters, grids and graph."""
    with warnings.catch_warnings():
        # PyTorch says this of a class of its own: nothing a user can act on.
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)
        return copy.deepcopy(model)


@dataclass(frozen=True)
class Layer:
    """A quantized layer: the quantizers of its inputs, and what they stand behind.

    Attributes:
        name: the plan's.
        node: of the captured graph.
        activation: the quantizer of its input.
        weight: the quantizer of its weight, where that is constant.
        weight_source: the node that makes the weight.
        weight_value: the parameter that this node reads; ``None`` where it computes its result.
        bias: the parameter.
    """

    name: str
    node: fx.Node
    activation: FakeQuantize | None
    weight: FakeQuantize | None
    weight_source: fx.Node
    weight_value: Tensor | None
    bias: Tensor | None

    @property
    def bias_step(self) -> Tensor | None:
        """The step of the integer sums that the bias joins; ``None`` where there is none."""
        if self.bias is None or self.activation is None or self.weight is None:
            return None
        return sums.bias_step(self.activation, self.weight, self.bias)


class Quantizers(nn.ModuleDict):
    """The quantizers of a graph, under the keys that ``keys_of`` gives their grids."""


def keys_of(grids: Iterable[str]) -> dict[str, str]:
    """The name of each grid's quantizer among the modules: an identifier of its own.

    Example:
        >>> keys_of(["fc_1.weight", "fc.1.weight", "values"])
        {'fc_1.weight': 'fc_1_weight', 'fc.1.weight': 'fc_1_weight_', 'values': 'values_'}
    """
    taken = set(dir(nn.ModuleDict()))  # a model's input may be called ``values``
    keys: dict[str, str] = {}
    for grid in grids:
        key = re.sub(r"\W", "_", grid)
        while key in taken:
            key += "_"
        taken.add(key)
        keys[grid] = key
    return keys


def insert_quantizers(
    module: fx.GraphModule,
    description: Description,
    plan: Placement,
    calibrator: Calibrator,
    weight_calibrator: Calibrator,
) -> None:
    """Put a ``FakeQuantize`` for each grid of the plan into the graph, and its readers behind it.

    Grids of weights are filled from the weights at once; those of activations by calibration.
    """
    quantizers, path, keys = Quantizers(), "quantizers", keys_of(plan.grids)
    while hasattr(module, path):  # the model has one of that name
        path += "_"
    module.add_submodule(path, quantizers)
    for grid, members in plan.grids.items():
        chosen = weight_calibrator if members[0].role == "weight" else calibrator
        quantizers[keys[grid]] = _quantizer(module, description, grid, members[0], chosen)
    for tensor in plan.tensors:
        _insert(module, description, tensor, f"{path}.{keys[tensor.grid]}")
    for decision in plan.decisions:
        if decision.kind in COMPUTE:
            description.node_of_op[decision.op].meta[LAYER] = decision.op
    module.graph.lint()
    module.recompile()


def _quantizer(
    module: fx.GraphModule,
    description: Description,
    grid: str,
    tensor: QuantizedTensor,
    calibrator: Calibrator,
) -> FakeQuantize:
    value = description.graph.values[tensor.tensor]
    if tensor.role == "weight":
        node = description.node_of_value[tensor.tensor]
        weight = evaluate_constant(module, node)
        qparams = found_qparams(weight, tensor.spec, calibrator, grid)
        quantizer = FakeQuantize(tensor.spec, shape=qparams.scale.shape, name=grid)
        quantizer.set_qparams(qparams)
        quantizer.quantize_values()
        return quantizer.to(weight.device)
    channels = 1 if tensor.spec.axis is None else value.shape[tensor.spec.axis] or 1
    observer = Observer(tensor.spec, calibrator, channels=channels, name=grid)
    shape = () if tensor.spec.axis is None else (channels,)
    return FakeQuantize(tensor.spec, shape=shape, observer=observer, name=grid)


def _insert(
    module: fx.GraphModule, description: Description, tensor: QuantizedTensor, quantizer: str
) -> None:
    source = description.node_of_value[tensor.tensor]
    graph = module.graph
    with graph.inserting_after(source):
        quantized = graph.call_module(quantizer, (source,))
    quantized.meta.update({k: v for k, v in source.meta.items() if k in {"val", "nn_module_stack"}})
    quantized.meta[TENSOR] = tensor.tensor
    for edge in tensor.edges:
        reader = description.node_of_op[edge.op]
        replace_input(reader, edge.index, source, quantized)
