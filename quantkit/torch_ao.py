"""quantkit's quantizers in the shape that torch.ao's eager ``prepare_qat`` expects.

For models already written with ``torch.ao.quantization`` (``QuantStub``, ``qconfig``): hand them
`qconfig` of a quantkit scheme, train, and let `from_torch_ao` make the quantized model of them.
torch.ao's eager flow is deprecated; this is the only file that touches it. New models want
``quantkit.quantize`` instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import QConfig
from torch.ao.quantization.fake_quantize import FakeQuantizeBase
from torch.ao.quantization.observer import ObserverBase

from quantkit import numerics
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import DataError, RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, module_path
from quantkit.graph.capture import DynamicShapes
from quantkit.graph.edit import constant
from quantkit.interfaces import Calibrator
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calibrate
from quantkit.numerics import QParams
from quantkit.observer import Observer
from quantkit.recipe import Recipe
from quantkit.settling import settle
from quantkit.spec import QuantSpec, Scheme
from quantkit.workflow import correct, planned, resolve_recipe, transformed

_DTYPES = {"int8": torch.qint8, "uint8": torch.quint8, "int4": torch.qint8}
#: What torch.ao calls the quantizer of a module's result, and that of its weight.
_OF_RESULT, _OF_WEIGHT = "activation_post_process", "weight_fake_quant"
#: What puts out values that lie on the grid of its input. The mean of an average pool does not.
_KEEPING_GRID = frozenset(
    {Kind.MOVE, Kind.SLICE, Kind.PAD, Kind.UPSAMPLE, Kind.RELU, Kind.MAX_POOL}
)


def _ao_attributes(spec: QuantSpec) -> dict[str, Any]:
    """What torch.ao's ``convert`` reads off a quantizer or observer."""
    if spec.is_float or spec.group_size is not None:
        raise RecipeError(
            f"torch.ao's eager flow has no form for {spec}; use int8, uint8 or int4 per tensor or "
            "per channel, or quantkit.quantize"
        )
    schemes = {
        (False, True): torch.per_tensor_symmetric,
        (False, False): torch.per_tensor_affine,
        (True, True): torch.per_channel_symmetric,
        (True, False): torch.per_channel_affine,
    }
    return {
        "dtype": _DTYPES[spec.dtype],
        "qscheme": schemes[spec.axis is not None, spec.symmetric],
        "quant_min": spec.qmin,
        "quant_max": spec.qmax,
        "ch_axis": -1 if spec.axis is None else spec.axis,
        "is_dynamic": False,
    }


class AoFakeQuantize(FakeQuantize, FakeQuantizeBase):
    """A `FakeQuantize` that torch.ao's eager flow can make, switch and convert.

    torch.ao says how many channels there are only with the first tensor (or with the first
    ``load_state_dict``); the observer and the buffers get their size then. As in torch.ao it
    observes and quantizes from the start.

    Args:
        spec: the grid; per tensor or per channel, integer.
        calibrator: what turns samples into a range.
        factory_kwargs: device and dtype as torch.ao's layers pass them; ``to`` sets the device.
    """

    def __init__(
        self,
        spec: QuantSpec,
        calibrator: Calibrator,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        attributes = _ao_attributes(spec)
        super().__init__(spec, shape=() if spec.axis is None else (0,))
        # torch.ao keeps its switches in tensors, on which torch.compile breaks the graph.
        del self.fake_quant_enabled, self.observer_enabled
        self.calibrator = calibrator
        for key, value in attributes.items():
            setattr(self, key, value)
        if spec.axis is None:
            self._resize(1)
        self.to((factory_kwargs or {}).get("device"))
        self.observing = self.quantizing = True

    def forward(self, x: Tensor) -> Tensor:
        """Observe and quantize ``x`` as the switches say."""
        if self.observer is None:
            (channels,) = numerics.scale_shape(x.shape, self.spec)
            self._resize(channels)
        return super().forward(x)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, each of shape ``(channels,)``, as torch.ao's ``convert`` asks."""
        qparams = self.qparams
        return qparams.scale.reshape(-1), qparams.zero_point.reshape(-1)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Called by ``torch.ao.quantization.enable_fake_quant``."""
        self.quantize_values(bool(enabled))

    def enable_observer(self, enabled: bool = True) -> None:
        """Called by ``torch.ao.quantization.enable_observer``."""
        self.observing = bool(enabled)

    def _resize(self, channels: int) -> None:
        device = self.scale.device
        if self.spec.axis is not None:
            self.scale = torch.ones(channels, device=device)
            middle = torch.full((channels,), self.spec.middle, dtype=torch.int32)
            self.zero_point = middle.to(device)
        self.observer = Observer(self.spec, self.calibrator, channels, self.name).to(device)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "scale")
        if saved is not None and saved.shape != self.scale.shape and saved.ndim == 1:
            self._resize(saved.numel())
        super()._load_from_state_dict(state_dict, prefix, *rest)


class AoObserver(ObserverBase):
    """A `quantkit.observer.Observer` for torch.ao's eager ``prepare``, made at the first tensor.

    It holds an Observer and is none: torch.ao wants ``calculate_qparams`` to return a tuple.

    Args:
        spec: the grid; per tensor or per channel, integer.
        calibrator: what turns samples into a range.
        factory_kwargs: device and dtype as torch.ao's layers pass them.
    """

    def __init__(
        self,
        spec: QuantSpec,
        calibrator: Calibrator,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        attributes = _ao_attributes(spec)
        super().__init__(dtype=attributes["dtype"])
        self.spec = spec
        self.calibrator = calibrator
        self.observer: Observer | None = None
        for key, value in attributes.items():
            setattr(self, key, value)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``x`` in; returns ``x`` itself."""
        if self.observer is None:
            channels = 1 if self.spec.axis is None else x.shape[self.spec.axis]
            self.observer = Observer(self.spec, self.calibrator, channels).to(x.device)
        y: Tensor = self.observer(x)
        return y

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, each of shape ``(channels,)``, as torch.ao's ``convert`` asks.

        Raises:
            DataError: where nothing was observed, or NaN or infinity was.
        """
        observer = self.observer or Observer(self.spec, self.calibrator)
        qparams = observer.calculate_qparams()
        return qparams.scale.reshape(-1), qparams.zero_point.reshape(-1)


def qconfig(scheme: Scheme, calibrator: Calibrator | None = None) -> QConfig:
    """A torch.ao ``QConfig`` for ``prepare_qat`` of the eager flow.

    Args:
        scheme: what is quantized; a ``None`` in it is left in float.
        calibrator: for activations; ``MovingAverage(momentum=0.01)`` if ``None``. Weights
            always follow their own range of the moment, which needs no memory.

    Raises:
        RecipeError: for fp8 or groups, for which torch.ao has no form.

    Example:
        >>> both = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
        >>> quantizer = qconfig(both).weight()
        >>> quantizer(torch.tensor([[1.27, 0.0], [0.0, 0.0]])).shape, quantizer.scale.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """

    def factory(spec: QuantSpec | None, chosen: Calibrator) -> Any:
        if spec is None:
            return nn.Identity
        _ao_attributes(spec)  # refused here rather than deep inside prepare_qat
        with_args: Any = AoFakeQuantize.with_args  # untyped in torch
        return with_args(spec=spec, calibrator=chosen)

    activations = MovingAverage(momentum=0.01) if calibrator is None else calibrator
    return QConfig(  # type: ignore[no-untyped-call]
        activation=factory(scheme.activations, activations),
        weight=factory(scheme.weights, MovingAverage(momentum=1.0)),
    )


def from_torch_ao(
    model: nn.Module,
    recipe: str | Path | Recipe,
    *,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
) -> QuantizedModel:
    """What was trained in torch.ao's eager flow, with the ranges of training, ready to export.

    Grids are those that the model computes on in evaluation mode. That of a weight is its layer's
    ``weight_fake_quant``, with fused batch-norm folded; that of an activation is the
    ``activation_post_process`` that it went through, also behind what keeps values on it (ReLU,
    max-pool, reshapes; not an average pool, whose result torch.ao trains in float). What is
    quantized is the recipe's to say: what it leaves in float runs in float, and what it quantizes
    must have been trained in that form. Weights round to nearest, as in training. A layer that was
    fused with its ReLU is called ``conv.0``: torch.ao makes a sequence of them.

    Args:
        model: prepared by ``prepare_qat`` with `qconfig`, and trained; it stays as it is.
        recipe: a name, a path to a YAML file, or a ``Recipe``.
        example_inputs: positional inputs as a tuple.
        example_kwargs: keyword inputs.
        calibration: batches for what the plan quantizes and torch.ao did not: only that has its
            grid from them (weights, from their values). Not needed where there is no such tensor.
        dynamic_shapes: see ``graph.capture.capture``.

    Raises:
        RecipeError: the model has no quantizers of `qconfig`, or a tensor was trained in another
            form than the recipe's, or on several grids where the plan has one, or a pass has
            changed a weight.
        DataError: a tensor has no trained range, and there is no ``calibration``.
        CaptureError: the model does not export.
        ModelFileError: the weights hold NaN or infinity.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore")  # torch.ao says that it is deprecated
        >>> from torch.ao.quantization import DeQuantStub, QuantStub, prepare_qat
        >>> net = nn.Sequential(QuantStub(), nn.Linear(32, 32), DeQuantStub())
        >>> net.qconfig = qconfig(Scheme(weights=QuantSpec(axis=0), activations=QuantSpec()))
        >>> net, x = prepare_qat(net), torch.full((4, 32), 1.27)
        >>> loss = net(x).sum()  # training goes here
        >>> qmodel = from_torch_ao(net, "int8_qat", example_inputs=(x,))
        >>> qmodel.quantizers["input"].scale
        tensor(0.0100)
    """
    chosen = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe)
    trained = _taken_from(model)
    captured = transformed(
        trained.model, chosen, example_inputs=example_inputs, example_kwargs=example_kwargs,
        dynamic_shapes=dynamic_shapes,
    )  # fmt: skip
    marks = _take_out_marks(captured.module)
    qmodel = planned(captured, chosen, seen={})
    grids = _grids_of(qmodel, trained, marks)
    missing = [grid for grid in qmodel.plan.grids if grid not in grids]
    if missing and calibration is None:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"torch.ao's training has left no range for {', '.join(missing[:5])}{more}; pass "
            "calibration=batches to calibrate those alone, or leave what reads them in float by "
            f"overrides of recipe {chosen.name}"
        )
    if any(qmodel.plan.grids[grid][0].role == "activation" for grid in missing):
        calibrate(qmodel, calibration)
    quantizers = qmodel.quantizers
    for grid, qparams in grids.items():
        quantizers[grid].set_qparams(qparams)
    qmodel.simulate()
    settle(qmodel)
    correct(qmodel, calibration)
    return qmodel


class _Mark(nn.Module):
    """Stands for an ``activation_post_process`` in what is captured, which tells its path."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, in a tensor of its own as a quantizer's result is."""
        return x.clone()


@dataclass(frozen=True)
class _Trained:
    """A float model as torch.ao trained it, and the grids of its training.

    Attributes:
        model: with float layers, and a `_Mark` for each ``activation_post_process``.
        weights: the grid of each weight, and its values, by its path in ``model``.
        results: the grid behind each `_Mark`, by its path.
    """

    model: nn.Module
    weights: dict[str, tuple[QParams, Tensor]]
    results: dict[str, QParams]


def _taken_from(model: nn.Module) -> _Trained:
    """Take apart a copy of what ``prepare_qat`` made."""
    if not any(isinstance(module, AoFakeQuantize) for module in model.modules()):
        raise RecipeError(
            f"{type(model).__name__} has no quantizers of quantkit's; set its qconfig to that of "
            "quantkit.torch_ao.qconfig before prepare_qat, and give it before torch.ao's convert"
        )
    trained = _Trained(copy.deepcopy(model), {}, {})
    layers: dict[nn.Module, nn.Module] = {}  # one may stand at several paths
    for path, module in list(trained.model.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        quantizer = getattr(module, _OF_WEIGHT, None)
        if quantizer is not None:
            layers.setdefault(module, _float_layer(path, module))
            setattr(trained.model.get_submodule(parent), name, layers[module])
            if isinstance(quantizer, AoFakeQuantize) and quantizer.calibrated:
                weight = _weight_path(path, layers[module])
                values = trained.model.get_parameter(weight).detach()
                trained.weights[weight] = quantizer.qparams, values
        elif name == _OF_RESULT:
            setattr(trained.model.get_submodule(parent), name, _Mark())
            if isinstance(module, AoFakeQuantize) and module.calibrated:
                trained.results[path] = module.qparams
    return trained


def _float_layer(path: str, module: Any) -> nn.Module:
    """The layer of torch.nn, its weight and its hooks; batch-norm is folded."""
    if not hasattr(module, "to_float"):
        raise RecipeError(
            f"{path} is a {type(module).__name__}, which has a {_OF_WEIGHT} but no to_float, so "
            "its float layer is not known; give the class a to_float as torch.ao.nn.qat has it"
        )
    layer: nn.Module = module.to_float()
    for before in module._forward_pre_hooks.values():
        layer.register_forward_pre_hook(before)
    for behind in module._forward_hooks.values():  # among them torch.ao's, which runs the mark
        layer.register_forward_hook(behind)
    layer.add_module(_OF_RESULT, _Mark())
    return layer


def _weight_path(path: str, layer: nn.Module) -> str:
    """Where a layer, alone or before its ReLU, has its weight."""
    return f"{path}.0.weight" if isinstance(layer, nn.Sequential) else f"{path}.weight"


def _take_out_marks(module: fx.GraphModule) -> dict[fx.Node, list[str]]:
    """Take the marks out of a graph; returns the paths of those that each tensor went through."""
    marks: dict[fx.Node, list[str]] = {}
    for node in list(module.graph.nodes):
        path = module_path(node)
        if path.rpartition(".")[2] == _OF_RESULT:
            source: Any = node.args[0]
            marks.setdefault(source, []).append(path)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.recompile()
    return marks


def _grids_of(
    model: QuantizedModel, trained: _Trained, marks: Mapping[fx.Node, list[str]]
) -> dict[str, QParams]:
    """What was trained, by the names of the plan's grids."""
    grids: dict[str, QParams] = {}
    paths: dict[str, str] = {}
    for node in model.graph.graph.nodes:
        quantizer = model.graph.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(quantizer, FakeQuantize):
            continue
        name, recipe = quantizer.name, model.recipe.name
        for path, found in _found(model.graph, node.args[0], trained, marks):
            if found.spec != quantizer.spec:
                raise RecipeError(
                    f"{name} was trained as {found.spec} ({path}), but recipe {recipe} has "
                    f"{quantizer.spec}; give a recipe of the scheme that qconfig was made with, "
                    "or one that leaves its readers in float by an override"
                )
            if not _same(grids.setdefault(name, found), found):
                raise RecipeError(
                    f"{name} has one grid in the plan of recipe {recipe}, but was trained on two, "
                    f"of {paths[name]} and {path}; quantize it once in the model, or set concat: "
                    "separate where a concatenation shares it"
                )
            paths.setdefault(name, path)
    return grids


def _found(
    graph: fx.GraphModule, node: Any, trained: _Trained, marks: Mapping[fx.Node, list[str]]
) -> Iterator[tuple[str, QParams]]:
    """The grids that a tensor was trained on, and of which quantizers they are."""
    if node.op == "get_attr":
        path = str(node.target)
        if path in trained.weights:
            qparams, values = trained.weights[path]
            if not torch.equal(values, constant(graph, node)):  # type: ignore[arg-type]
                raise RecipeError(
                    f"a pass of the recipe has changed {path}, whose grid was trained for what it "
                    "was; leave that pass out of the recipe"
                )
            yield path, qparams
        return
    while node not in marks:
        quantizer = node.op == "call_module"
        if not quantizer and (node.op != "call_function" or kind_of(node) not in _KEEPING_GRID):
            return
        node = node.args[0]
    yield from ((path, trained.results[path]) for path in marks[node] if path in trained.results)


def _same(one: QParams, other: QParams) -> bool:
    return torch.equal(one.scale, other.scale) and torch.equal(one.zero_point, other.zero_point)
