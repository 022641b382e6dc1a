"""The fingerprint of a model tells what it computes, not how its file is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import qdq_models as nets
from onnx import numpy_helper

from quantkit.errors import ModelFileError
from quantkit.tensorrt.fingerprint import Fingerprint

#: One model for all: `floats` of qdq_models draws other weights each time.
MODEL = nets.float_net()


def copy() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    return model


def of(model: onnx.ModelProto, folder: Path) -> Fingerprint:
    return Fingerprint.of(nets.save(model, folder))


def external(folder: Path) -> Path:
    path = folder / "outside.onnx"
    onnx.save_model(copy(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def rewrite_as_numbers(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel().tolist()
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)


def document(model: onnx.ModelProto) -> None:
    model.producer_name, model.doc_string = "another", "words"
    model.metadata_props.add(key="made", value="today")
    model.graph.node[0].doc_string = "words"


def reverse_weights(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(tensors))


def change_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] = np.nextafter(values.flat[-1], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def change_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("strides", [2, 2]))


def rename_tensor(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "renamed"
    model.graph.node[0].input[0] = "renamed"


@pytest.mark.parametrize("change", [rewrite_as_numbers, document, reverse_weights])
def test_how_the_file_is_written_does_not_count(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    before = of(copy(), tmp_path)
    model = copy()
    change(model)
    assert model.SerializeToString() != copy().SerializeToString()
    assert of(model, tmp_path) == before


@pytest.mark.parametrize(
    ("change", "parts"),
    [(change_weight, ["weights"]), (change_attribute, ["graph"]), (rename_tensor, ["graph"])],
)
def test_what_it_computes_counts_and_the_part_is_told(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], parts: list[str]
) -> None:
    before = of(copy(), tmp_path)
    model = copy()
    change(model)
    assert before.differences(of(model, tmp_path)) == parts


def test_weights_beside_the_file_count_as_those_in_it(tmp_path: Path) -> None:
    inside = of(copy(), tmp_path)
    path = external(tmp_path)
    assert Fingerprint.of(path) == inside
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert inside.differences(Fingerprint.of(path)) == ["weights"]


def test_missing_or_short_weights_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:-8])
    with pytest.raises(ModelFileError, match=r"w\.bin: ends 8 bytes before the weights of"):
        Fingerprint.of(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match=r"w\.bin: cannot be read .*weights of"):
        Fingerprint.of(path)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx: cannot be read"):
        Fingerprint.of(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx: not an ONNX file"):
        Fingerprint.of(tmp_path / "text.onnx")


def test_constants_inside_nodes_count_as_weights(tmp_path: Path) -> None:
    def model(value: float) -> onnx.ModelProto:
        tensor = numpy_helper.from_array(np.full(4, value, np.float32), "c")
        nodes = [
            onnx.helper.make_node("Constant", [], ["c"], name="c", value=tensor),
            onnx.helper.make_node("Add", ["x", "c"], ["y"], name="add"),
        ]
        x, y = (onnx.helper.make_tensor_value_info(n, 1, [4]) for n in "xy")
        return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]))

    assert of(model(1), tmp_path).differences(of(model(2), tmp_path)) == ["weights"]
