"""From calibration caches to Q/DQ, and back."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_models import model_of, saved, small_net, weight
from torch import Tensor
from two_ways import export_float

import small_models
from quantkit.building import build
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.migrating import Migration, cache_of, migrate
from quantkit.numerics import SCALE_FLOOR
from quantkit.onnx.export import export_onnx
from quantkit.recipe import PlugIn, Recipe
from quantkit.tensorrt.cache import CalibrationCache, read_cache, write_cache
from quantkit.tensorrt.record import record_cache
from quantkit.workflow import resolve_recipe
from quantkit.workflow_onnx import quantize_onnx

HEADER = "TRT-8601-EntropyCalibration2"

#: The tensors that the plan quantizes in the small net.
QUANTIZED = ("image", "r", "p")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


def hexadecimal(scale: float) -> str:
    """A float32 as caches hold it: its bytes, the most significant first."""
    return struct.pack(">f", scale).hex()


def by_hand(path: Path, scales: Mapping[str, float], header: str = HEADER) -> Path:
    """A cache as the format is described, without any code of quantkit."""
    lines = [header, *(f"{name}: {hexadecimal(scale)}" for name, scale in scales.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def all_scales(model: onnx.ModelProto) -> dict[str, float]:
    """Another scale for each tensor of a model."""
    names = [i.name for i in model.graph.input] + [n.output[0] for n in model.graph.node]
    return {name: 0.01 + 0.003 * index for index, name in enumerate(names)}


def grids_of(path: Path) -> dict[str, np.ndarray]:
    """The scale that each DequantizeLinear of a file has, by what it dequantizes."""
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    found = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            quantize = made.get(node.input[0])
            name = node.input[0] if quantize is None else quantize.input[0]
            found[name] = constants[node.input[1]]
    return found


def migrated(
    folder: Path, model: onnx.ModelProto, scales: Mapping[str, float], recipe: str | Recipe
) -> tuple[Migration, dict[str, np.ndarray]]:
    """What becomes of a cache, and the grids of the file that is written."""
    source = saved(model, folder / "float.onnx")
    migration = migrate(source, by_hand(folder / "some.cache", scales), recipe)
    return migration, grids_of(export_onnx(migration.model, folder / "int8.onnx"))


def test_the_file_has_the_scales_of_the_cache_bit_for_bit(tmp_path: Path) -> None:
    scales = all_scales(small_net())

    migration, found = migrated(tmp_path, small_net(), scales, "int8_ptq")

    assert migration.taken == {name: name for name in QUANTIZED}
    assert (migration.absent, migration.unranged, migration.findings) == ((), {}, ())
    for name in QUANTIZED:
        assert found[name].tobytes() == struct.pack("<f", scales[name]), name


@settings(max_examples=20, deadline=None)
@given(bits=st.integers(min_value=0x3400_0000, max_value=0x4200_0000))
def test_every_scale_is_taken_bit_for_bit(
    bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    source = saved(small_net(), folder / "float.onnx")
    cache = CalibrationCache(HEADER, dict.fromkeys(all_scales(small_net()), bits))
    grids = migrate(source, cache).model.grids
    assert {int(grids[name].scale.view(torch.int32)) for name in QUANTIZED} == {bits}


def test_weights_have_a_scale_a_channel(tmp_path: Path) -> None:
    migration, found = migrated(tmp_path, small_net(), all_scales(small_net()), "int8_ptq")
    per_channel = [scale.shape for name, scale in found.items() if name not in QUANTIZED]
    assert per_channel == [(16,)] * 3
    assert set(migration.model.biases) == {"stem.conv", "layer1.0.conv1", "fc"}


def test_the_scale_of_a_dead_tensor_is_the_least_there_is(tmp_path: Path) -> None:
    scales = all_scales(small_net()) | {"r": 0.0}
    _, found = migrated(tmp_path, small_net(), scales, "int8_ptq")
    assert found["r"] == np.float32(SCALE_FLOOR) > 0


def test_names_may_hold_colons_and_spaces(tmp_path: Path) -> None:
    model = small_net()
    new = {"image": "serve:image:0", "r": "stem/act: out"}
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    model.graph.input[0].name = new["image"]
    scales = all_scales(model)

    migration, found = migrated(tmp_path, model, scales, "int8_ptq")

    assert set(migration.taken) == {*new.values(), "p"}
    for name in new.values():
        assert found[name] == np.float32(scales[name])


def convs(*between: onnx.NodeProto, middle: str) -> onnx.ModelProto:
    """A convolution, ``between`` from ``a`` to ``middle``, and another convolution."""
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", **pads),
        *between,
        helper.make_node("Conv", [middle, "w2"], ["y"], "second", **pads),
    ]
    constants = {
        "w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3, seed=1),
        "shape": np.array([0, 16, 8, 8]),
    }  # fmt: skip
    return model_of(nodes, {"x": ["N", 16, 8, 8]}, {"y": ["N", 16, None, None]}, constants)


POOL = helper.make_node("MaxPool", ["a"], ["m"], "pool", kernel_shape=[2, 2])
TURN = helper.make_node("Transpose", ["a"], ["m"], "turn", perm=[0, 1, 3, 2])
SHAPE = helper.make_node("Reshape", ["a", "shape"], ["m"], "shape")


@pytest.mark.parametrize("node", [POOL, TURN, SHAPE], ids=lambda n: n.op_type)
def test_what_only_moves_values_has_the_range_of_its_input(
    node: onnx.NodeProto, tmp_path: Path
) -> None:
    migration, _ = migrated(tmp_path, convs(node, middle="m"), {"x": 0.1, "a": 0.25}, "int8_ptq")
    assert set(migration.taken.values()) == {"x", "a"}
    assert migration.unranged == {}
    assert sorted(float(g.scale) for g in migration.model.grids.values() if not g.scale.dim()) == [
        float(np.float32(0.1)), 0.25
    ]  # fmt: skip


@pytest.mark.parametrize("node", [TURN, SHAPE], ids=lambda n: n.op_type)
def test_a_tensor_has_the_range_of_what_has_all_its_values(
    node: onnx.NodeProto, tmp_path: Path
) -> None:
    migration, _ = migrated(tmp_path, convs(node, middle="m"), {"x": 0.1, "m": 0.25}, "int8_ptq")
    assert set(migration.taken.values()) == {"x", "m"}


def test_the_range_of_a_pool_is_not_that_of_its_input(tmp_path: Path) -> None:
    """Its largest magnitude may be the smaller one: the most negative values are gone."""
    model, scales = convs(POOL, middle="m"), {"x": 0.1, "m": 0.25}
    migration, _ = migrated(tmp_path, model, scales, "int8_ptq")
    taken = migration.taken.get("a")
    assert taken is None
    assert ("a" in migration.unranged) != ("m" in migration.taken)


def test_tensors_that_share_a_grid_take_the_widest_range(tmp_path: Path) -> None:
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "left", **pads),
        helper.make_node("Conv", ["x", "w2"], ["b"], "right", **pads),
        helper.make_node("Concat", ["a", "b"], ["both"], "join", axis=1),
        helper.make_node("Conv", ["both", "w3"], ["y"], "last", **pads),
    ]
    constants = {"w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3, seed=1),
                 "w3": weight(16, 32, 3, 3, seed=2)}  # fmt: skip
    model = model_of(nodes, {"x": ["N", 16, 8, 8]}, {"y": ["N", 16, 8, 8]}, constants)
    recipe = Recipe.model_validate(
        {
            "name": "shared",
            "scheme": {"weights": {"per": "channel"}, "activations": {}},
            "placement": {"concat": "shared"},
        }
    )

    scales = {"x": 0.5, "a": 0.125, "b": 0.375, "both": 0.25}
    migration, found = migrated(tmp_path, model, scales, recipe)

    (shared,) = [members for members in migration.model.plan.grids.values() if len(members) > 1]
    assert len(shared) >= 2
    widest = max(scales[member.tensor] for member in shared)
    assert widest == 0.375
    assert {float(found[member.tensor]) for member in shared if member.tensor in found} == {widest}


def test_a_layer_without_a_range_stays_float_and_plan_and_finding_say_so(tmp_path: Path) -> None:
    scales = all_scales(small_net())
    del scales["r"]

    migration, found = migrated(tmp_path, small_net(), scales, "int8_ptq")

    assert migration.unranged == {"r": ("layer1.0.conv1", "layer1.0/add")}
    decision = migration.model.plan.decision("layer1.0.conv1")
    assert (decision.quantized, decision.reason) == (
        False, "the calibration cache has no range for r",
    )  # fmt: skip
    assert "r" not in found
    assert migration.taken == {"image": "image", "p": "p"}
    (finding,) = migration.findings
    assert (finding.code, finding.where) == ("no-range", "r")
    assert "layer1.0.conv1, layer1.0/add in float" in finding.why
    assert "quantkit quantize" in finding.fix


def test_an_add_alone_can_lack_a_range(tmp_path: Path) -> None:
    """Its skip branch, where the convolution beside it reads another tensor."""
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", **pads),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["c"], "second", **pads),
        helper.make_node("Add", ["c", "skip"], ["y"], "sum"),
    ]
    constants = {"w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3, seed=1)}
    shape = ["N", 16, 8, 8]
    model = model_of(nodes, {"x": shape, "skip": shape}, {"y": shape}, constants)
    migration, found = migrated(tmp_path, model, {"x": 0.1, "r": 0.2}, "int8_ptq")
    assert migration.unranged == {"skip": ("sum",)}
    assert migration.model.plan.quantized == ("first", "second")
    assert {"x", "r"} < set(found)


def test_tensors_that_the_model_lacks_are_told(tmp_path: Path) -> None:
    unnamed = "(Unnamed Layer* 3) [Shuffle]_output"
    scales = all_scales(small_net()) | {unnamed: 0.1, "gone": 0.2}
    migration, _ = migrated(tmp_path, small_net(), scales, "int8_ptq")
    assert migration.absent == (unnamed, "gone")
    (finding,) = migration.findings
    assert (finding.code, finding.where) == ("unknown-tensor", unnamed)
    assert "and 1 more" in finding.why


def test_the_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    cache = by_hand(tmp_path / "some.cache", {"left": 0.1, "right": 0.2})
    with pytest.raises(ModelFileError, match=r"ranges for 2 tensors, and .* has none of them"):
        migrate(source, cache)


def test_a_record_of_another_model_refuses_the_cache_unless_it_is_trusted(tmp_path: Path) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    cache = by_hand(tmp_path / "some.cache", all_scales(small_net()))
    record_cache(cache, source)
    assert set(migrate(source, cache).taken) == set(QUANTIZED)

    changed = small_net()
    constant = changed.graph.initializer[0]
    constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * 2, constant.name))
    saved(changed, source)
    with pytest.raises(ModelFileError, match=r"another model than .* with weights that differ"):
        migrate(source, cache)
    assert set(migrate(source, cache, trust_cache=True).taken) == set(QUANTIZED)


def test_a_cache_that_changed_since_its_record_is_refused_unless_it_is_trusted(
    tmp_path: Path,
) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    scales = all_scales(small_net())
    cache = by_hand(tmp_path / "some.cache", scales)
    record_cache(cache, source)
    by_hand(cache, {name: 2 * scale for name, scale in scales.items()})
    with pytest.raises(ModelFileError, match="changed after"):
        migrate(source, cache)
    assert set(migrate(source, cache, trust_cache=True).taken) == set(QUANTIZED)


@pytest.mark.parametrize("recipe", ["int8_asymmetric", "int8_cpu", "int8_weight_only"])
def test_recipes_with_other_grids_are_refused(recipe: str, tmp_path: Path) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    cache = by_hand(tmp_path / "some.cache", all_scales(small_net()))
    with pytest.raises(RecipeError, match=f"{recipe}: a calibration cache holds .* use int8_ptq"):
        migrate(source, cache, recipe)


# The other way


def calibrated_by(name: str) -> Recipe:
    """The recipe of migrations with a calibrator."""
    return resolve_recipe("int8_ptq").model_copy(update={"calibrator": PlugIn(name=name)})


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["entropy", "minmax"])
def test_ranges_survive_the_way_into_a_cache_and_back(name: str, tmp_path: Path) -> None:
    """Without batch-norm, which is folded for Q/DQ only, to the last bit."""
    source = saved(convs(TURN, middle="m"), tmp_path / "float.onnx")
    path = tmp_path / "some.cache"
    write_cache(path, cache_of(source, [images()], calibrator=name))

    back = migrate(source, path).model
    direct = quantize_onnx(source, calibrated_by(name), calibration=[images()])

    assert back.plan.tensors == direct.plan.tensors
    assert back.grids.keys() == direct.grids.keys()
    for grid, qparams in direct.grids.items():
        assert torch.equal(back.grids[grid].scale, qparams.scale), grid


@pytest.mark.parametrize("make", [small_models.resnet, small_models.encoder])
def test_exported_models_go_the_way_there_and_back(make: object, tmp_path: Path) -> None:
    assert callable(make)
    model = make()
    batch = model.inputs()
    source = export_float(model.eval(), batch, tmp_path / "float.onnx")
    migration = migrate(source, cache_of(source, [batch], calibrator="minmax"))
    direct = quantize_onnx(source, calibrated_by("minmax"), calibration=[batch])
    assert migration.unranged == {}
    assert migration.model.plan.quantized == direct.plan.quantized != ()
    for grid in direct.observers:
        torch.testing.assert_close(
            migration.model.grids[grid].scale, direct.grids[grid].scale, rtol=1e-5, atol=0
        )


def test_a_cache_has_every_float_tensor_of_the_file_by_its_name(tmp_path: Path) -> None:
    model = small_net()
    cache = cache_of(saved(model, tmp_path / "float.onnx"), [images()], calibrator="minmax")
    assert set(cache.bits) == set(all_scales(model))
    assert cache.amax["image"] == pytest.approx(float(images().abs().max()))


def scores(mask: float, behind: str) -> onnx.ModelProto:
    """A product, some of which is replaced by ``mask``, and what comes behind it."""
    make = helper.make_node
    nodes = [make("MatMul", ["x", "w"], ["s"]), make("Where", ["c", "m", "s"], ["masked"]),
             make(behind, ["masked"], ["y"])]  # fmt: skip
    constants = {"w": weight(16, 16), "c": np.arange(16) > 8, "m": np.float32(mask)}
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    return model_of(nodes, {"x": ["N", 16]}, {"y": ["N", 16]}, arrays)


def test_a_tensor_that_is_infinite_by_design_has_no_range(tmp_path: Path) -> None:
    source = saved(scores(-np.inf, "Softmax"), tmp_path / "float.onnx")
    assert set(cache_of(source, [torch.randn(8, 16)]).bits) == {"x", "s", "y"}


def test_no_cache_is_made_of_a_model_that_computes_nan(tmp_path: Path) -> None:
    source = saved(scores(np.nan, "Relu"), tmp_path / "float.onnx")
    with pytest.raises(DataError, match="'y' has observed NaN"):
        cache_of(source, [torch.randn(8, 16)])


def test_the_header_is_of_the_calibrator_and_version_that_is_to_read_it(tmp_path: Path) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    assert cache_of(source, [images()]).header == "TRT-101303-EntropyCalibration2"
    old = cache_of(source, [images()], calibrator="minmax", version=8601)
    assert old.header == "TRT-8601-MinMaxCalibration"


def test_a_cache_of_ours_reads_back_by_hand(tmp_path: Path) -> None:
    """By a reader written from the description of the format alone."""
    cache = cache_of(saved(small_net(), tmp_path / "float.onnx"), [images()])
    path = tmp_path / "some.cache"
    write_cache(path, cache)
    header, *lines = path.read_text().splitlines()
    pairs = [line.rsplit(": ", 1) for line in lines]
    found = {name: struct.unpack(">f", bytes.fromhex(text))[0] for name, text in pairs}
    assert header == "TRT-101303-EntropyCalibration2"
    assert found == cache.scales == read_cache(path).scales


@needs_rtx
def test_tensorrt_rtx_runs_the_planned_layers_in_int8(tmp_path: Path) -> None:
    scales = {n: s for n, s in all_scales(small_net()).items() if n not in ("p", "f")}
    source = saved(small_net(batch=32), tmp_path / "float.onnx")
    migration = migrate(source, by_hand(tmp_path / "some.cache", scales))
    path = export_onnx(migration.model, tmp_path / "int8.onnx")

    built = build(path, tmp_path / "net.engine")

    runs = {layer.node: layer.precision for layer in built.layers}
    assert built.planned == built.covered == len(migration.model.plan.quantized) == 2
    assert sorted(runs.values()) == ["float32", "int8", "int8"]
    (float_layer,) = [layer for layer in built.layers if layer.precision == "float32"]
    assert float_layer.reason == "the calibration cache has no range for p"
