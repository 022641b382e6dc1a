"""Images go back to the integers that they were made of, and quantizing them costs nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from quantkit.batches import Call
from quantkit.graph.capture import capture
from quantkit.model import QuantizedModel
from quantkit.passes._pixels import Pixels, factors, pixels_of
from quantkit.passes.align_input import AlignInput
from quantkit.recipe import Recipe
from quantkit.workflow import quantize, resolve_recipe

RECIPE = resolve_recipe("int8_centered")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def photos(count: int, *, seed: int = 0) -> Tensor:
    """Bytes, normalized as torchvision does it."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 12, 12), generator=generator)
    return (pixels / 255.0 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


class Net(nn.Module):
    """A convolution that reads the image, and one behind it."""

    def __init__(
        self,
        *,
        padding: int = 1,
        groups: int = 1,
        bias: bool = True,
        pad_before: int = 0,
        skip: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 48, 3, padding=padding, groups=groups, bias=bias)
        self.second = nn.Conv2d(48, 16, 1)
        self.pad_before, self.skip = pad_before, skip
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        read = F.pad(x, (0, self.pad_before, 0, self.pad_before)) if self.pad_before else x
        y: Tensor = self.second(F.relu(self.first(read)))
        return y + x.mean(1, keepdim=True) if self.skip else y


def aligned(
    model: nn.Module, images: Tensor, recipe: Recipe = RECIPE
) -> tuple[fx.GraphModule, int]:
    module = copy.deepcopy(capture(model, (images[:2],)).module)
    calls: list[Call] = [((part,), {}) for part in images.split(8)]
    count = AlignInput().apply(module, recipe, calls)
    module.graph.lint()
    return module, count


@pytest.mark.parametrize(
    "settings",
    [{}, {"padding": 0}, {"groups": 3}, {"bias": False}, {"pad_before": 2}],
    ids=["padding", "plain", "grouped", "no bias", "padded before"],
)
def test_the_float_result_is_the_same(settings: dict[str, int]) -> None:
    net, images = Net(**settings), photos(32)
    module, count = aligned(net, images)
    assert count == 1
    other = photos(8, seed=1)
    torch.testing.assert_close(module(other), net(other), rtol=1e-4, atol=1e-4)


def errors(passes: list[str], net: nn.Module, images: Tensor) -> float:
    """The relative error that the grid of the input alone makes."""
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"passes": passes})
    model = quantize(net, recipe, calibration=[images])
    other = photos(16, seed=1)
    with torch.inference_mode():
        for quantizer in model.of_role("activation"):
            quantizer.quantize_values(False)
        expected = model(other)
        next(iter(model.of_role("activation"))).quantize_values(True)
        return float((model(other) - expected).norm() / expected.norm())


@pytest.mark.parametrize("centered", [False, True])
def test_quantizing_the_input_costs_nothing_but_at_the_border(centered: bool) -> None:
    images, center = photos(64), ["center"] if centered else []
    before = errors(["fold_batchnorm", *center], Net(padding=0), images)
    after = errors(["fold_batchnorm", "align_input", *center], Net(padding=0), images)
    assert before > 1e-3
    assert after < 1e-4
    padded = errors(["fold_batchnorm", "align_input", *center], Net(), images)
    assert padded < 0.5 * before


def test_the_shifted_grid_needs_no_other_shift_at_the_input() -> None:
    recipe = Recipe.model_validate(
        RECIPE.model_dump() | {"passes": ["fold_batchnorm", "align_input", "center"]}
    )
    model: QuantizedModel = quantize(Net(), recipe, calibration=[photos(64)])
    first = next(iter(model.of_role("activation")))
    assert float(first.scale) == 1.0
    assert int(first.zero_point) == 0


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (torch.randn(32, 3, 12, 12), "values between pixels"),
        ((photos(32) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)) * 255.0 / 128.0 - 1.0, "one grid"),
        ((photos(32) > 0).float(), "two values"),
        (torch.randint(0, 200, (32, 3, 12, 12)) / 255.0 + MEAN.view(3, 1, 1), "none has all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_no_help_or_cannot_be_helped_stays(images: Tensor, why: str) -> None:
    assert aligned(Net(), images)[1] == 0, why


def test_an_input_that_others_read_stays() -> None:
    assert aligned(Net(skip=True), photos(32))[1] == 0


def test_a_symmetric_grid_has_too_few_levels_so_the_input_stays() -> None:
    assert aligned(Net(), photos(32), resolve_recipe("int8_ptq"))[1] == 0


def test_an_input_in_half_precision_stays() -> None:
    assert aligned(Net().half(), photos(32).half())[1] == 0


def test_the_constants_do_not_train() -> None:
    module, _ = aligned(Net(), photos(32))
    trained = {name for name, _ in module.named_parameters()}
    assert trained == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert {name for name, _ in module.named_buffers()} == {
        "first.input_factor", "first.input_offset",
    }  # fmt: skip


steps = st.floats(1e-3, 1e3)
origins = st.floats(-300.0, 300.0)


@given(st.lists(st.tuples(steps, origins), min_size=1, max_size=4))
def test_pixels_of_any_step_and_origin_come_back_as_integers(
    channels: list[tuple[float, float]],
) -> None:
    integers = torch.arange(256)
    values = [((integers + origin) * step).float() for step, origin in channels]
    found = [pixels_of(v) for v in values]
    assert all(isinstance(p, Pixels) and p.top == 255 for p in found)
    fit = factors([p for p in found if p is not None], 256)
    if fit is None:  # one grid does for all of them
        return
    for v, a, b in zip(values, *fit, strict=True):
        assert float((a * v.double() + b - integers).abs().max()) < 0.02


@given(st.integers(64, 254), st.integers(0, 100))
def test_a_channel_that_has_not_shown_all_values_keeps_room_on_both_sides(
    top: int, origin: int
) -> None:
    a, b = factors([Pixels(0.0, 1.0, 255), Pixels(float(origin), 0.3, top)], 256) or (None, None)
    assert a is not None
    assert b is not None
    low = float(a[1] * origin + b[1])
    assert 0.0 <= low <= 255.0 - top
    assert abs((255.0 - top - low) - low) <= 1.0 + 1e-9


def test_the_builder_makes_no_more_kernels(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='pip install "quantkit[rtx]"')
    from rtx_kernels import kernels_of

    counts = []
    for passes in (["fold_batchnorm", "center"], ["fold_batchnorm", "align_input", "center"]):
        recipe = Recipe.model_validate(
            RECIPE.model_dump() | {"passes": passes, "placement": {"small": True}}
        )
        counts.append(kernels_of(quantize(Net(), recipe, calibration=[photos(64)]), tmp_path))
    assert counts[1] <= counts[0]
