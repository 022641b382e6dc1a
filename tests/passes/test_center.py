"""Centering: the same codes on a symmetric grid, an equal float graph, and files that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from exported_models import assert_same, opened
from pydantic import ValidationError
from rtx_kernels import kernels_of
from torch import Tensor, nn

import small_models
from quantkit import numerics
from quantkit.errors import ModelFileError, RecipeError
from quantkit.interfaces import ExportForm
from quantkit.model import QuantizedModel, copied
from quantkit.model_calibration import calibrate
from quantkit.onnx.export import export_onnx
from quantkit.onnx.lint import lint
from quantkit.passes import _center_biases
from quantkit.passes.center import Center
from quantkit.qat.switches import train_quantizers
from quantkit.recipe import PlugIn, Recipe
from quantkit.reconstruction.layers import set_weight
from quantkit.settling import settle
from quantkit.workflow import prepare, quantize, resolve_recipe, round_weights


class Net(nn.Module):
    """A module from a function of its layers and the input."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def conv(inputs: int = 16, outputs: int = 16, kernel: int = 3, **more: object) -> nn.Conv2d:
    more = {"padding": kernel // 2, **more}
    return nn.Conv2d(inputs, outputs, kernel, **more)  # type: ignore[arg-type]


def image(seed: int = 0, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, 10, 9, generator=generator) + 0.3


def rows(seed: int = 0, batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, 32, generator=torch.Generator().manual_seed(seed)) - 0.2


def _two_readers(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(m["a"](x))
    return m["b"](x) + m["c"](F.max_pool2d(x, 3, 1, 1))


def _max_pool(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m["a"](x)), 3, 2, 1)
    return m["c"](F.relu(m["b"](x) + x))


def _residual(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(m["a"](x))
    return m["c"](F.relu(m["b"](x) + x))


def _no_layer_to_add_in(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(m["a"](x))
    return m["c"](F.silu(F.silu(m["b"](x)) + x))


def _chunks(m: nn.ModuleDict, x: Tensor) -> Tensor:
    first, second = F.relu(m["a"](x)).chunk(2, dim=1)
    return m["c"](torch.cat([F.relu(m["b"](first)), second], dim=1))


def _pool(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(m["a"](x))
    return m["b"](F.avg_pool2d(x, 2)).mean((2, 3)) + m["c"](x).mean((2, 3))


def _padded_pool(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(m["a"](x))
    return m["b"](F.avg_pool2d(x, 3, 1, 1)) + m["c"](x)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "padded": (lambda: Net(lambda m, x: m["b"](F.relu(m["a"](x))), a=conv(), b=conv()), image),
    "no bias": (
        lambda: Net(lambda m, x: m["b"](F.relu(m["a"](x))), a=conv(bias=False), b=conv(bias=False)),
        image,
    ),
    "relu6, depthwise, strided": (
        lambda: Net(
            lambda m, x: m["c"](F.relu6(m["b"](F.relu6(2 * m["a"](x))))),
            a=conv(), b=conv(groups=16, stride=2), c=conv(kernel=1),
        ),
        image,
    ),
    "same, dilated": (
        lambda: Net(
            lambda m, x: m["b"](F.hardtanh(m["a"](x), -0.2, 1.0)),
            a=conv(padding="same"), b=conv(dilation=2, padding="same"),
        ),
        image,
    ),
    "explicit pads": (
        lambda: Net(
            lambda m, x: m["b"](F.pad(F.relu(m["a"](F.pad(x, (0, 1, 2, 0)))), (1, 1, 1, 0))),
            a=conv(padding=0), b=conv(padding=1),
        ),
        image,
    ),
    "reflected": (
        lambda: Net(
            lambda m, x: m["b"](F.relu(m["a"](x))), a=conv(), b=conv(padding_mode="reflect")
        ),
        image,
    ),
    "two paddings": (lambda: Net(_two_readers, a=conv(), b=conv(), c=conv(kernel=1)), image),
    "residual": (lambda: Net(_residual, a=conv(), b=conv(), c=conv(kernel=1)), image),
    "residual by a constant": (
        lambda: Net(_no_layer_to_add_in, a=conv(), b=conv(), c=conv(kernel=1)), image,
    ),
    "max-pool": (lambda: Net(_max_pool, a=conv(), b=conv(bias=False), c=conv(kernel=1)), image),
    "parts": (lambda: Net(_chunks, a=conv(16, 32), b=conv(), c=conv(32, 16)), image),
    "pool": (lambda: Net(_pool, a=conv(), b=conv(kernel=1), c=conv()), image),
    "padded pool": (lambda: Net(_padded_pool, a=conv(), b=conv(kernel=1), c=conv()), image),
    "gelu and silu": (
        lambda: Net(
            lambda m, x: m["c"](F.silu(m["b"](F.gelu(m["a"](x))))),
            a=nn.Linear(32, 64), b=nn.Linear(64, 32), c=nn.Linear(32, 32, bias=False),
        ),
        rows,
    ),
    "matmul": (
        lambda: Net(
            lambda m, x: torch.matmul(F.relu(m["a"](x)), m["b"].weight), a=nn.Linear(32, 32),
            b=nn.Linear(32, 32),
        ),
        rows,
    ),
    "shared weight": (
        lambda: Net(
            lambda m, x: m["a"](F.relu(m["a"](F.gelu(m["a"](x))))), a=nn.Linear(32, 32)
        ),
        rows,
    ),
    "transformer": (small_models.encoder, lambda seed=0: small_models.encoder().inputs(4, seed)[0]),
}  # fmt: skip


every_model = pytest.mark.parametrize("name", MODELS)


@cache
def _uncentered(name: str) -> QuantizedModel:
    make, data = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    found = prepare(model, "int8_centered", example_inputs=(data(0),))
    calibrate(found, [data(1), data(2)])
    round_weights(found)
    for layer in found.layers():
        if layer.weight is not None and layer.weight_value is not None:
            set_weight(layer, layer.weight(layer.weight_value).detach())
    return found


def uncentered(name: str) -> QuantizedModel:
    """Calibrated on asymmetric grids, its weights rounded to the grid; a copy of one's own."""
    return copied(_uncentered(name))


def centered(name: str) -> QuantizedModel:
    model = uncentered(name)
    assert Center().apply(model, []) > 0
    return model


@pytest.fixture
def exact_biases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Biases as computed: rounded to the sums' grid they differ by half a step of it."""
    monkeypatch.setattr(_center_biases, "round_bias", lambda layer: None)
    return


def codes(model: QuantizedModel, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The integers that the last quantizer of each grid made, and the model's result."""
    seen: dict[str, Tensor] = {}
    handles = []
    for grid, quantizer in model.quantizers.items():
        if quantizer.observer is not None:

            def note(module: nn.Module, _: object, out: Tensor, grid: str = grid) -> None:
                seen[grid] = torch.round(out / module.scale) + module.zero_point

            handles.append(quantizer.register_forward_hook(note))
    with torch.no_grad():
        result = model(x)
    for handle in handles:
        handle.remove()
    return seen, result


@every_model
@pytest.mark.usefixtures("exact_biases")
def test_the_simulation_makes_the_same_integers(name: str) -> None:
    before, after, x = uncentered(name), centered(name), MODELS[name][1](3)
    expected, expected_result = codes(before, x)
    found, result = codes(after, x)
    assert expected.keys() == found.keys()
    for grid, integers in expected.items():
        own = found[grid]
        if own.dim() == 4 and name != "explicit pads":  # the middle is what was there before
            own = own[(..., *map(_middle, own.shape[2:], integers.shape[2:]))]
        if own.shape == integers.shape:
            assert (own - integers).abs().max() <= 1, grid
            assert (own != integers).double().mean() < 2e-3, grid
    assert numerics.sqnr(expected_result, result) > 50


def _middle(padded: int, extent: int) -> slice:
    start = (padded - extent) // 2
    return slice(start, start + extent)


@every_model
@pytest.mark.usefixtures("exact_biases")
def test_without_quantizers_the_graph_is_the_float_graph(name: str) -> None:
    before, after, x = uncentered(name), centered(name), MODELS[name][1](3)
    before.simulate(False)
    after.simulate(False)
    with torch.no_grad():
        for inputs in (x, x[:1]):
            assert numerics.sqnr(before(inputs), after(inputs)) > 100


@every_model
def test_every_grid_keeps_its_step_and_becomes_symmetric(name: str) -> None:
    before, after = uncentered(name), centered(name)
    for grid, quantizer in after.quantizers.items():
        old = before.quantizers[grid]
        assert torch.equal(old.scale, quantizer.scale)
        assert quantizer.spec.symmetric
        assert not quantizer.zero_point.any()
        assert after.plan.grids[grid][0].spec == quantizer.spec
    again = str(after.graph.graph)
    assert Center().apply(after, []) == 0
    assert str(after.graph.graph) == again


@every_model
def test_every_bias_stays_a_multiple_of_the_step_of_its_sums(name: str) -> None:
    for layer in centered(name).layers():
        if layer.bias is not None and layer.bias_step is not None:
            steps = layer.bias.double() / layer.bias_step.double()
            assert (steps - steps.round()).abs().max() < 1e-6 * (1 + steps.abs().max())


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("relu6, depthwise, strided", "tensorrt"),
        ("parts", "tensorrt"),
        ("matmul", "tensorrt"),
        ("two paddings", "onnxruntime"),
    ],
)
def test_a_file_runs_as_simulated_and_pads_before_it_quantizes(
    name: str, form: ExportForm, tmp_path: Path
) -> None:
    model, x = centered(name), MODELS[name][1](3)
    path = export_onnx(model, tmp_path / "model.onnx", form=form)
    with torch.no_grad():
        assert_same(model(x), opened(path, optimized=False)(x)[0])
    if form == "tensorrt":
        assert [f for f in lint(path) if f.code == "nonzero-zero-point"] == []
    graph = onnx.load(path).graph
    makers = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            pads = [i for a in node.attribute if a.name == "pads" for i in a.ints]
            assert not any(pads)
            while node is not None and node.op_type != "QuantizeLinear":
                node = makers.get(node.input[0])
                assert node is None or node.op_type != "Pad"


def test_behind_a_max_pool_a_constant_makes_up_for_the_zeros_of_the_padding() -> None:
    model = centered("max-pool")
    (layer,) = [layer for layer in model.layers() if layer.name == "layers.b"]
    (behind,) = layer.node.users
    borders = model.graph.get_parameter(str(behind.all_input_nodes[1].target))
    assert borders.shape == (1, 16, 5, 5)
    assert borders[..., 1:-1, 1:-1].abs().max() < 1e-12
    assert borders[..., 0, :].abs().max() > 1e-3


def test_a_relu_that_the_grid_implies_is_gone_from_the_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    model = quantize(net, "int8_centered", calibration=[rows(1)])
    path = export_onnx(model, tmp_path / "model.onnx", form="tensorrt")
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert not {"Relu", "Clip"} & set(operators)
    assert operators.count("Sub") == 1  # of the model's input, which no bias makes


def test_the_products_of_attention_have_symmetric_grids_from_the_start() -> None:
    grids = uncentered("transformer").plan.grids
    asymmetric = {g for g, (t, *_) in grids.items() if not t.spec.symmetric}
    assert asymmetric == {"norm1/layer_norm", "norm2/layer_norm", "gelu"}


def test_a_copy_and_a_loaded_state_compute_the_same(tmp_path: Path) -> None:
    model, x = centered("residual"), image(3)
    model.save(tmp_path / "model.safetensors")
    twin = copied(centered("residual"))
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    twin.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))


def test_a_state_of_other_shifts_or_of_a_model_that_has_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    centered("residual").save(path)
    with pytest.raises(ModelFileError, match="only in the file"):
        uncentered("residual").load(path)
    other = _calibrated_on(image(7) * 2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ModelFileError, match="is centered at"):
        other.load(path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def _calibrated_on(x: Tensor) -> QuantizedModel:
    torch.manual_seed(0)
    return quantize(MODELS["residual"][0]().eval(), "int8_centered", calibration=[x])


def test_half_precision_leaves_the_shifts_as_they_are() -> None:
    model = centered("residual")
    before = {name: value.clone() for name, value in model.named_buffers() if "centers" in name}
    assert len(before) == 3
    halved = dict(model.half().named_buffers())
    assert all(torch.equal(value, halved[name]) for name, value in before.items())


@pytest.mark.parametrize(("grids", "calibrator"), [("learn", "mse"), ("follow", "moving_average")])
def test_a_centered_model_trains_and_exports(grids: str, calibrator: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = MODELS["residual"][0]().eval(), image(3)
    chosen = {"calibrator": PlugIn(name=calibrator)}
    recipe = resolve_recipe("int8_centered").model_copy(update=chosen)
    model = quantize(net, recipe, calibration=[image(1)])
    train_quantizers(model, grids)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    target = torch.zeros(())
    losses = []
    for _ in range(3):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    settle(model)
    path = export_onnx(model, tmp_path / "model.onnx", form="tensorrt")
    with torch.no_grad():
        assert_same(model(x), opened(path, optimized=False)(x)[0])


def test_a_relu_wins_a_bit_over_symmetric_grids() -> None:
    gained = {}
    for recipe in ("int8_ptq", "int8_centered"):
        torch.manual_seed(0)
        net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv()).eval()
        model = quantize(net, recipe, calibration=[image(1)])
        with torch.no_grad():
            gained[recipe] = numerics.sqnr(net(image(2)), model(image(2)))
    assert gained["int8_centered"] > gained["int8_ptq"] + 1.0


def test_the_recipe_is_taken_for_what_is_deployed() -> None:
    recipe = resolve_recipe("int8_centered", target="tensorrt_rtx")
    assert all(s.activations is not None and s.activations.symmetric for s in recipe.schemes())
    assert recipe.scheme.activations is not None
    assert not recipe.scheme.activations.symmetric
    without = recipe.model_copy(update={"passes": recipe.passes[:1]})
    assert not without.centers
    with pytest.raises(RecipeError, match="zero-point"):
        resolve_recipe(without, target="tensorrt_rtx")


def test_a_recipe_that_goes_on_after_it_is_refused() -> None:
    recipe = resolve_recipe("int8_centered").model_dump()
    with pytest.raises(ValidationError, match="name center last"):
        Recipe.model_validate(recipe | {"passes": ["fold_batchnorm", "center", "correct_bias"]})


def test_kept_batch_norm_is_refused() -> None:
    recipe = resolve_recipe("int8_centered")
    keeping = (recipe.passes[0].model_copy(update={"name": "keep_batchnorm"}), recipe.passes[1])
    net = small_models.resnet()
    with pytest.raises(RecipeError, match=r"use the passes \[fold_batchnorm, center\]"):
        quantize(net, recipe.model_copy(update={"passes": keeping}), calibration=[net.inputs(4)[0]])


def test_the_builder_makes_no_more_kernels_and_all_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='pip install "quantkit[rtx]"')
    net = small_models.resnet()
    counts = [
        kernels_of(quantize(net, recipe, calibration=[net.inputs(8, seed=1)[0]]), tmp_path)
        for recipe in ("int8_ptq", "int8_centered")
    ]
    assert counts[1] <= counts[0]


def test_a_size_that_was_free_in_the_callers_program_stays_free() -> None:
    net = small_models.resnet()
    (x,) = net.inputs(4)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    qmodel = quantize(program, "int8_centered", calibration=[x])
    assert any(float(c) for c in qmodel.get_submodule("centers").buffers())
    exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
    assert exported is not None
    shape = exported.model.graph.inputs[0].shape
    assert shape is not None
    assert not str(shape[0]).isdigit()
