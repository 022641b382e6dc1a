"""A model run piece by piece, cut into blocks, and rounded by what its layers really read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import quantkit
import small_models
from quantkit import numerics, plugins
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import LayerRounding
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calls_of
from quantkit.recipe import PlugIn
from quantkit.reconstruction.block import Block
from quantkit.reconstruction.blocks import blocks_of
from quantkit.reconstruction.layers import Form, form_of, gathered, spread
from quantkit.reconstruction.moments import moments_of
from quantkit.reconstruction.problem import LayerProblem, ideal_weight, output_error
from quantkit.reconstruction.steps import reconstruct
from quantkit.reconstruction.stream import Pieces, Stream
from quantkit.rounding.qdrop import QDrop
from quantkit.spec import QuantSpec
from quantkit.workflow import calibrate, prepare

Make = Callable[[], small_models.SmallModel]


def calibrated(make: Make, recipe: str = "int8_ptq") -> tuple[QuantizedModel, list[Any]]:
    """A model whose weights are not rounded yet, and its calls."""
    model = make()
    data = [model.inputs(8, seed=seed) for seed in range(2)]
    prepared = prepare(model, recipe, example_inputs=model.example_inputs)
    calibrate(prepared, data)
    return prepared, calls_of(prepared.capture, data, 16)


@pytest.mark.parametrize("make", small_models.ALL)
def test_run_in_pieces_a_model_gives_what_it_gives_whole(make: Make) -> None:
    model, calls = calibrated(make)
    stream = Stream(model, calls)
    for span in blocks_of(model, stream.pieces):
        stream.move(span.stop, stream.ahead(span.stop))
    stream.move(len(stream.pieces.nodes), stream.ahead(len(stream.pieces.nodes)))
    output = next(n for n in model.graph.graph.nodes if n.op == "output").all_input_nodes[0]
    with torch.no_grad():
        for (args, kwargs), values in zip(calls, stream.quantized, strict=True):
            torch.testing.assert_close(values[output], model(*args, **kwargs), rtol=0, atol=0)
        model.simulate(False)
        for (args, kwargs), values in zip(calls, stream.floating, strict=True):
            torch.testing.assert_close(values[output], model(*args, **kwargs), rtol=0, atol=0)


@pytest.mark.parametrize("make", small_models.ALL)
def test_blocks_hold_every_layer_once_in_order_and_leave_nothing_out(make: Make) -> None:
    model, _ = calibrated(make)
    pieces = Pieces(model)
    spans = blocks_of(model, pieces)
    named = [layer.name for span in spans for layer in span.layers]
    assert named == [layer.name for layer in model.layers() if layer.weight is not None]
    places = [place for span in spans for place in (span.start, span.stop)]
    assert places == sorted(places)
    assert all(a.stop == b.start for a, b in pairwise(spans))


def test_a_residual_block_is_one_block() -> None:
    model, _ = calibrated(small_models.resnet)
    spans = blocks_of(model, Pieces(model))
    assert {"identity", "projection"} <= {span.name for span in spans}
    held = {span.name: len(span.layers) for span in spans}
    assert (held["identity"], held["projection"]) == (2, 3)


def test_between_blocks_only_what_is_still_read_is_kept() -> None:
    model, calls = calibrated(small_models.resnet)
    stream = Stream(model, calls)
    for span in blocks_of(model, stream.pieces)[:-1]:
        stream.move(span.stop, stream.ahead(span.stop))
        tensors = [v for v in stream.quantized[0].values() if isinstance(v, Tensor)]
        assert len(tensors) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1)),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv1d(4, 6, 5, padding="same"),
        nn.Conv3d(4, 2, 2),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_matrices_times_rows_are_what_the_layer_computes(layer: nn.Module) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x)
            return result

    dims = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    x = torch.randn(2, *(() if dims else (5,)), 4, *[7] * dims)
    prepared = prepare(Padded(), "int8_ptq", example_inputs=(x,))
    node = next(n for n in prepared.graph.graph.nodes if "quantkit_layer" in n.meta)
    form = form_of(node, layer.weight)
    assert form is not None
    with torch.no_grad():
        made = form.rows(x, 10**6, torch.Generator()) @ form.matrices(layer.weight).mT
        result = layer(x) - (layer.bias.view(-1, *[1] * dims) if dims else layer.bias)
    expected = result.movedim(1, -1) if dims else result
    flat = expected.reshape(-1, form.groups, layer.weight.shape[0] // form.groups)
    torch.testing.assert_close(made, flat.transpose(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(form.weight(form.matrices(layer.weight)), layer.weight)


def test_the_same_positions_are_drawn_of_two_inputs() -> None:
    form = Form((6, 4, 3, 3), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    x, generator = torch.randn(3, 4, 9, 9), torch.Generator().manual_seed(1)
    state = generator.get_state()
    first = form.rows(x, 20, generator)
    generator.set_state(state)
    assert first.shape == (1, 20, 36)
    torch.testing.assert_close(form.rows(2 * x, 20, generator), 2 * first)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([None, 0, 1]), st.booleans(), st.integers(0, 1000))
def test_scales_that_were_spread_are_gathered_again(
    axis: int | None, grouped: bool, seed: int
) -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
    size = 4 if grouped and axis is not None else None
    spec = QuantSpec(dtype="int4", axis=axis, group_size=size)
    qparams = numerics.choose_qparams(*numerics.tensor_range(weight, spec), spec)
    step, _ = spread(qparams, tuple(weight.shape))
    assert step.shape == weight.shape
    assert torch.equal(gathered(step, qparams).scale, qparams.scale)


def test_the_error_by_moments_is_the_error_over_samples() -> None:
    x = torch.randn(300, 5)
    y = x + 0.2 * torch.randn(300, 5)
    w = torch.randn(1, 3, 5)
    v = w + 0.1 * torch.randn(1, 3, 5)
    moments = [m[None] / 300 for m in (y.T @ y, x.T @ y, x.T @ x)]
    measured = (y @ v[0].T - x @ w[0].T).square().mean(0)
    torch.testing.assert_close(output_error(v, w, *moments)[0].float(), measured)


def test_no_weight_errs_less_than_the_ideal_one() -> None:
    x = torch.randn(300, 5)
    y = x + 0.5 * torch.randn(300, 5)
    w = torch.randn(1, 3, 5)
    moments = [m[None] / 300 for m in (y.T @ y, x.T @ y, x.T @ x)]
    best = ideal_weight(w, moments[0], moments[1], damping=0.0)
    least = output_error(best, w, *moments)
    assert (least < output_error(w, w, *moments)).all()
    for seed in range(5):
        other = best + 0.05 * torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(seed))
        assert (output_error(other, w, *moments) > least).all()


@dataclass(frozen=True)
class Remembering(LayerRounding):
    """Rounds to nearest (or the first layer to zero), and keeps what it was told."""

    problems: list[LayerProblem]
    wreck: bool = False

    @property
    def samples(self) -> int:
        """All."""
        return 16

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Nearest."""
        self.problems.append(problem)
        nearest = problem.snap(problem.weight)
        first = self.wreck and len(self.problems) == 1
        return (torch.zeros_like(nearest) if first else nearest), problem.step


def test_a_layer_is_told_inputs_that_the_rounded_layers_before_it_make() -> None:
    model, calls = calibrated(small_models.resnet)
    rounding = Remembering([])
    reconstruct(model, rounding, calls)
    first, *later = rounding.problems
    # Nothing before the first layer errs but the grid of its own input.
    assert (first.quantized - first.floating).abs().max() < 0.02 * first.floating.abs().max()
    wrecked, _ = calibrated(small_models.resnet)
    other = Remembering([], wreck=True)
    reconstruct(wrecked, other, calls)
    for p, q in zip(later, other.problems[1:], strict=True):
        assert (p.quantized - q.quantized).abs().max() > 0.1 * p.quantized.abs().max()
    nearest, _ = calibrated(small_models.resnet)
    quantkit.round_weights(nearest)
    for ours, theirs in zip(model.layers(), nearest.layers(), strict=True):
        assert ours.weight is not None
        assert theirs.weight is not None
        torch.testing.assert_close(
            ours.weight(ours.weight_value), theirs.weight(theirs.weight_value), rtol=0, atol=0
        )


def test_the_moments_are_those_of_the_tensors_that_the_layer_reads() -> None:
    model, calls = calibrated(small_models.resnet)
    stream = Stream(model, calls)
    layer = next(iter(model.layers()))
    form = form_of(layer.node, layer.weight_value)
    assert form is not None
    found, unseen = moments_of(stream, layer, form, {})
    assert unseen.count == 0  # fewer calls than that one is held out
    x = torch.cat([args[0] for args, _ in calls])
    assert layer.activation is not None
    with torch.no_grad():
        rows = form.rows(layer.activation(x), 10**7, torch.Generator())
    whole = (rows.mT @ rows / rows.shape[1]).float()
    assert (found.means()[0] - whole).abs().max() < 0.1 * whole.abs().max()


def test_no_data_is_an_error_that_says_what_to_pass() -> None:
    model, _ = calibrated(small_models.resnet)
    with pytest.raises(DataError, match="needs calibration data; pass at least one batch"):
        reconstruct(model, QDrop(), [])


def four_bits(**rounding: Any) -> quantkit.Recipe:
    return quantkit.Recipe.model_validate(
        {
            "name": "w4a4",
            "target": "onnxruntime",
            "scheme": {
                "weights": {"per": "channel", "bits": 4},
                "activations": {"dtype": "uint8", "bits": 4, "symmetric": False},
            },
            "weight_calibrator": "mse",
            "rounding": rounding,
        }
    )


def output_db(rounding: dict[str, Any]) -> float:
    model = small_models.resnet()
    data = [model.inputs(8, seed=seed) for seed in range(8)]
    quantized = quantkit.quantize(model, four_bits(**rounding), calibration=data)
    x = torch.cat([batch[0] for batch in data])
    with torch.no_grad():
        return numerics.sqnr(model(x), quantized(x))


@pytest.mark.slow
def test_a_block_that_learns_is_better_than_nearest_and_twice_the_same() -> None:
    learned = {"name": "qdrop", "settings": {"samples": 64, "iterations": 60, "batch": 16}}
    first = output_db(learned)
    assert first > output_db({"name": "nearest"}) + 1.0
    assert first == output_db(learned)


def test_what_is_learned_of_grids_is_kept_in_the_model() -> None:
    model, calls = calibrated(small_models.resnet, recipe="w4a8_qat")
    before = {name: q.scale.clone() for name, q in model.quantizers.items()}
    reconstruct(model, QDrop(iterations=20, grid_learning_rate=0.01), calls)
    moved = [n for n, q in model.quantizers.items() if not torch.equal(q.scale, before[n])]
    assert moved
    assert all(q.calibrated and not q.learning for q in model.quantizers.values())


def test_a_block_runs_with_weights_and_biases_of_ones_choice() -> None:
    model, calls = calibrated(small_models.resnet)
    stream = Stream(model, calls)
    span = blocks_of(model, stream.pieces)[0]
    whole = {layer.name: layer.weight_value for layer in span.layers}
    block = Block(stream, span, stream.ahead(span.stop), whole)
    inputs = block.inputs([0, 1], quantized=False)
    weights = {layer.name: torch.zeros_like(layer.weight) for layer in block.layers}
    biases = {
        layer.name: torch.ones_like(layer.bias) for layer in block.layers if layer.bias is not None
    }
    result = block.run(inputs, weights, biases)
    assert result.shape[0] == block.target([0, 1]).shape[0] == 16
    torch.testing.assert_close(result, F.relu(torch.ones_like(result)))


def test_a_weight_that_two_layers_read_is_refused_with_what_to_set() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(F.relu(self.fc(x)))
            return result

    recipe = quantkit.read_recipe(plugins.recipe_path("int8_ptq"))
    learned = recipe.model_copy(update={"rounding": PlugIn(name="descent")})
    with pytest.raises(RecipeError, match=r"read one weight.*set rounding: nearest"):
        quantkit.quantize(Twice().eval(), learned, calibration=[torch.randn(8, 32)])
