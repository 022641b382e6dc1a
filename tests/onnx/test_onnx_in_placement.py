"""A model and the float file that was exported of it get the same plan, grids and results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from exported_models import assert_same, opened
from torch import Tensor, nn
from two_ways import both, captured_graph, export_float, layers, placement, scales

import small_models
from quantkit.onnx.export import export_onnx
from quantkit.onnx.lint import lint
from quantkit.recipe import PlugIn, Recipe
from quantkit.workflow import quantize, resolve_recipe
from quantkit.workflow_onnx import quantize_onnx


class MultiHead(nn.Module):
    """PyTorch's own attention layer in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(64), nn.MultiheadAttention(64, 4, batch_first=True)
        self.out = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        out: Tensor = self.out(x + y)
        return out


class Masked(nn.Module):
    """Scaled dot-product attention where a mask says what may be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]
        seen = mask[:, None, None, :]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)


TOKENS = ((4, 24, 64),)
IMAGES = ((8, 3, 16, 16),)
MODELS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    **{make.__name__: (make, IMAGES) for make in small_models.CONVOLUTIONAL},
    "unet_nearest": (small_models.unet_nearest, IMAGES),
    "unet_transposed": (small_models.unet_transposed, IMAGES),
    "encoder": (small_models.encoder, TOKENS),
    "multi_head": (MultiHead, TOKENS),
    "encoder_layer": (encoder_layer, TOKENS),
}
#: What a scale may differ by: sums in another order, a batch-norm folded in float32.
FLOAT_ERROR = 1e-5


@pytest.fixture(autouse=True)
def _slow_path() -> Iterator[None]:
    """The exporter does not know the fused operator of PyTorch's attention layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, shapes = MODELS[name]
    generator = torch.Generator().manual_seed(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval(), tuple(torch.randn(shape, generator=generator) for shape in shapes)


def assert_alike(
    model: nn.Module,
    args: tuple[Tensor, ...],
    path: Path,
    recipe: str | Recipe,
) -> None:
    # Min-max: its range follows the data to float error, where a search may take the next of two
    # thresholds that are equally good.
    chosen = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe, cpu="vnni")
    recipe = chosen.model_copy(update={"calibrator": PlugIn(name="minmax")})
    ours, theirs = both(model, args, path, recipe)
    assert layers(theirs.plan) == layers(ours.plan)
    expected = placement(ours.plan, captured_graph(model, args, recipe))
    assert placement(theirs.plan, theirs.description.graph) == expected
    for name, a, b in scales(ours, theirs):
        assert torch.allclose(b, a, rtol=FLOAT_ERROR, atol=0.0), name
    first = export_onnx(ours, path.with_suffix(".ours.onnx"))
    second = export_onnx(theirs, path.with_suffix(".theirs.onnx"))
    onnx.checker.check_model(second, full_check=True)
    assert [f.code for f in lint(second)] == [f.code for f in lint(first)]
    for a, b in zip(opened(first)(*args), opened(second)(*args), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_both_ways_in_quantize_the_same_tensors_with_the_same_grids(
    name: str, tmp_path: Path
) -> None:
    model, args = made(name)
    path = export_float(model, args, tmp_path / "float.onnx")
    assert_alike(model, args, path, "int8_ptq")
    # The other form and its scheme are one code for all models: three show them.
    if name in ("resnet", "inverted_residual", "encoder"):
        assert_alike(model, args, path, "int8_cpu")


@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_the_opset_of_the_file_changes_no_plan(name: str, tmp_path: Path) -> None:
    model, args = made(name)
    path = export_float(model, args, tmp_path / "float.onnx", 18)
    assert_alike(model, args, path, "int8_ptq")


def test_weights_alone_have_the_same_grids(tmp_path: Path) -> None:
    model, args = made("encoder")
    path = export_float(model, args, tmp_path / "float.onnx")
    assert_alike(model, args, path, "int8_weight_only")


def test_attention_of_opset_23_is_quantized_as_its_products(tmp_path: Path) -> None:
    model, args = made("encoder")
    path = export_float(model, args, tmp_path / "float.onnx", 23)
    assert "Attention" in {node.op_type for node in onnx.load(path).graph.node}
    assert_alike(model, args, path, "int8_ptq")


@pytest.mark.parametrize("opset", [20, 23])
def test_attention_with_a_mask_is_quantized_as_in_pytorch(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[1, 8:], mask[3, 3:] = False, False
    model, args = Masked().eval(), (torch.randn(4, 12, 64), mask)
    path = export_float(model, args, tmp_path / "float.onnx", opset)
    assert_alike(model, args, path, "int8_ptq")


def test_a_batch_norm_in_the_file_is_folded_as_in_pytorch(tmp_path: Path) -> None:
    for name in ("resnet", "inverted_residual", "unet_transposed"):
        model, args = made(name)
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(
            model, args, path, dynamo=True, optimize=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
        assert "BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}
        assert_alike(model, args, path, "int8_ptq")


def test_without_passes_batch_norms_stay_in_both(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "bare",
            "scheme": {"weights": {"per": "channel"}, "activations": {}},
            "passes": [],
        }
    )
    model, args = made("resnet")
    path = tmp_path / "float.onnx"
    torch.onnx.export(
        model, args, path, dynamo=True, optimize=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert_alike(model, args, path, recipe)


def test_overrides_by_module_match_in_the_file_as_in_the_model(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "mixed",
            "scheme": {"weights": {"per": "channel"}, "activations": {}},
            "overrides": [{"module": "identity.*", "scheme": None}],
        }
    )
    model, args = made("resnet")
    path = export_float(model, args, tmp_path / "float.onnx")
    assert_alike(model, args, path, recipe)
    plan = quantize_onnx(path, recipe, calibration=[args]).plan
    assert plan.unused == ()
    assert not plan.decision("identity.conv1.0").quantized


def test_groups_of_weights_lie_along_the_same_elements(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "groups",
            "scheme": {"weights": {"dtype": "int4", "per": "group", "group_size": 16}},
        }
    )
    model, args = made("encoder")
    path = export_float(model, args, tmp_path / "float.onnx")
    ours, theirs = quantize(model, recipe, example_inputs=args), quantize_onnx(path, recipe)
    assert layers(ours.plan) == layers(theirs.plan)
    for _, a, b in scales(ours, theirs):
        torch.testing.assert_close(b.t() if a.shape != b.shape else b, a)
