"""Reading float ONNX files: one form of all of them, and a reason where there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exported_models import opened
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model_of, saved, small_net, weight

from quantkit import numerics
from quantkit.errors import ModelFileError
from quantkit.onnx.opsets import lower_opset, opset_of
from quantkit.onnx.reading import read_onnx

make = helper.make_node


def read(model: onnx.ModelProto) -> ir.Model:
    return read_onnx(ir.from_proto(model))


def run(model: ir.Model | onnx.ModelProto, folder: Path, *inputs: torch.Tensor) -> torch.Tensor:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return opened(saved(proto, folder / "run.onnx"))(*inputs)[0]


def image(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_every_opset_is_read_as_the_same_function(opset: int, tmp_path: Path) -> None:
    model = small_net(opset=opset)
    result = read(model)
    assert opset_of(result) >= 18
    expected, found = run(model, tmp_path, image()), run(result, tmp_path, image())
    assert numerics.sqnr(expected, found) > 110


def test_the_users_file_and_model_stay_as_they_were(tmp_path: Path) -> None:
    path = saved(small_net(), tmp_path / "net.onnx")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    read_onnx(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    model = ir.load(path)
    kept = ir.to_proto(model).SerializeToString(deterministic=True)
    read_onnx(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == kept


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small_net(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    expected = run(small_net(), tmp_path, image())
    result = read_onnx(path)
    ir.external_data.load_to_model(result)
    assert numerics.sqnr(expected, run(result, tmp_path, image())) > 110


def test_weights_that_are_missing_or_cut_short_are_told(tmp_path: Path) -> None:
    path, beside = tmp_path / "net.onnx", tmp_path / "net.bin"
    onnx.save(small_net(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"net\.bin, which ends before"):
        read_onnx(path)
    beside.unlink()
    with pytest.raises(ModelFileError, match=r"net\.bin, which is not there"):
        read_onnx(path)


def test_constants_wherever_they_stand_are_initializers() -> None:
    array = weight(32, 16)
    nodes = [
        make("Constant", [], ["w"], value=numpy_helper.from_array(array)),
        make("Transpose", ["w"], ["t"], perm=[1, 0]),
        make("MatMul", ["x", "t"], ["y"]),
    ]
    graph = read(model_of(nodes, {"x": ["N", 16]}, {"y": ["N", 32]})).graph
    assert [node.op_type for node in graph] == ["MatMul"]
    value = graph.node(0).inputs[1]
    assert value is not None
    assert value.const_value is not None
    np.testing.assert_array_equal(value.const_value.numpy(), array.T)


def test_large_weights_are_folded_too() -> None:
    nodes = [
        make("Transpose", ["w"], ["t"], perm=[1, 0]),
        make("MatMul", ["x", "t"], ["y"]),
    ]
    shapes = {"x": ["N", 700]}, {"y": ["N", 800]}
    graph = read(model_of(nodes, *shapes, {"w": weight(800, 700)})).graph
    assert [node.op_type for node in graph] == ["MatMul"]


def test_initializers_that_are_inputs_as_well_are_constants() -> None:
    model = model_of([make("MatMul", ["x", "w"], ["y"])], {"x": ["N", 16], "w": [16, 32]},
                     {"y": ["N", 32]}, {"w": weight(16, 32)})  # fmt: skip
    assert [value.name for value in read(model).graph.inputs] == ["x"]


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "mine", "Double", ["a"], ["b"], [make("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model = model_of([make("Double", ["x"], ["y"], domain="mine")], {"x": ["N"]}, {"y": ["N"]})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    result = read(model)
    assert [node.op_type for node in result.graph] == ["Add"]
    assert not result.functions


def test_nodes_get_names_of_their_own_and_the_same_each_time() -> None:
    nodes = [make("Relu", ["x"], ["a"], "twice"), make("Relu", ["a"], ["b"], "twice"),
             make("Relu", ["b"], ["y"])]  # fmt: skip
    model = model_of(nodes, {"x": ["N"]}, {"y": ["N"]})
    first, second = ([node.name for node in read(model).graph] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3
    assert all(first)


def quantized() -> onnx.ModelProto:
    nodes = [make("QuantizeLinear", ["x", "s", "z"], ["q"], "in"),
             make("DequantizeLinear", ["q", "s", "z"], ["y"])]  # fmt: skip
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return model_of(nodes, {"x": ["N"]}, {"y": ["N"]}, arrays)


def half() -> onnx.ModelProto:
    return model_of([make("MatMul", ["x", "w"], ["y"])], {"x": ["N", 16]}, {"y": ["N", 16]},
                    {"w": weight(16, 16).astype(np.float16)},
                    dtype=TensorProto.FLOAT16)  # fmt: skip


def broken() -> onnx.ModelProto:
    array = weight(16, 16)
    array[2, 3:5] = np.nan
    return model_of([make("MatMul", ["x", "w"], ["y"])], {"x": ["N", 16]}, {"y": ["N", 16]},
                    {"w": array})  # fmt: skip


def broken_bias() -> onnx.ModelProto:
    model = small_net()
    for tensor in model.graph.initializer:
        if tensor.name == "fc.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), tensor.name))
    return model


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (quantized, "is quantized already .*QuantizeLinear in.*give the float file"),
        (half, "is float16, and Q/DQ is written in float32; export the model in float32"),
        (broken, "w holds NaN or infinity in 2 of 256 values"),
        (broken_bias, "fc.bias holds NaN or infinity in 16 of 16 values"),
    ],
)
def test_what_cannot_be_quantized_is_refused_with_the_way_out(
    bad: Callable[[], onnx.ModelProto], said: str, tmp_path: Path
) -> None:
    path = saved(bad(), tmp_path / "bad.onnx")
    with pytest.raises(ModelFileError, match=said) as raised:
        read_onnx(path)
    assert str(path) in str(raised.value)


def test_masks_may_hold_infinity() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, dtype=np.float32), 1)
    read(model_of([make("Add", ["x", "m"], ["y"])], {"x": ["N", 4, 4]}, {"y": ["N", 4, 4]},
                  {"m": mask}))  # fmt: skip


def test_masks_behind_a_product_may_hold_infinity_too() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, dtype=np.float32), 1)
    nodes = [make("MatMul", ["x", "x"], ["s"]), make("Add", ["s", "m"], ["y"])]
    model = read(model_of(nodes, {"x": ["N", 4, 4]}, {"y": ["N", 4, 4]}, {"m": mask}))
    assert "m" in model.graph.initializers


def test_no_file_and_no_onnx_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_bytes(b"not a protobuf at all")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        read_onnx(tmp_path / "text.onnx")


def test_an_older_opset_is_declared_only_where_every_node_is_in_it() -> None:
    shapes = {"x": ["N", 16]}, {"y": ["N", 16]}
    newer = model_of([make("RMSNormalization", ["x", "w"], ["y"])], *shapes,
                     {"w": weight(16)}, opset=23)  # fmt: skip
    model = ir.from_proto(newer)
    assert not lower_opset(model, 20)
    assert opset_of(model) == 23
    plain = ir.from_proto(model_of([make("Relu", ["x"], ["y"])], *shapes, opset=23))
    assert lower_opset(plain, 20)
    assert opset_of(plain) == 20
