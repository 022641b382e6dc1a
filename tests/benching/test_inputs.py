"""What models take, and batches of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_models import model_of, saved
from torch import Tensor, nn

from quantkit.benching.inputs import (
    Input,
    chunks,
    first_samples,
    fixed_batch,
    inputs_of_onnx,
    inputs_of_program,
    made_up,
    resized,
)
from quantkit.errors import DataError

X = Input(name="x", shape=(None, 3), dtype=np.dtype("float32"))
ONE = Input(name="table", shape=(1, 3), dtype=np.dtype("int64"))


class Two(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + ids


def batches(*sizes: int) -> list[Tensor]:
    numbers = torch.arange(float(3 * sum(sizes))).reshape(-1, 3)
    return list(numbers.split(list(sizes)))


def test_a_program_tells_its_inputs() -> None:
    args, kwargs = (torch.zeros(2, 3),), {"ids": torch.zeros(2, 3, dtype=torch.int64)}
    dims = {"x": {0: torch.export.Dim.AUTO}, "ids": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(Two(), args, kwargs, dynamic_shapes=dims)
    first, second = inputs_of_program(program)
    assert first == X
    assert second == Input(name="ids", shape=(None, 3), dtype=np.dtype("int64"))
    assert first.batched


def test_a_program_of_lists_is_refused() -> None:
    class Listed(nn.Module):
        def forward(self, pair: list[Tensor]) -> Tensor:
            return pair[0] + pair[1]

    program = torch.export.export(Listed(), ([torch.zeros(2), torch.zeros(2)],))
    with pytest.raises(DataError, match="lie in lists or dictionaries"):
        inputs_of_program(program)


def test_an_onnx_file_tells_its_inputs_and_its_one_batch_size(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = saved(model_of([node], {"x": [4, 3]}, {"y": [4, 3]}), tmp_path / "fixed.onnx")
    found = inputs_of_onnx(path)
    assert found == (Input(name="x", shape=(4, 3), dtype=np.dtype("float32")),)
    assert fixed_batch(found) == 4
    free = model_of([node], {"x": ["N", 3]}, {"y": ["N", 3]})
    assert fixed_batch(inputs_of_onnx(saved(free, tmp_path / "free.onnx"))) is None
    assert onnx.load(path).graph.input


def test_inputs_are_made_up_where_only_the_batch_is_free() -> None:
    made = made_up([X, ONE])
    assert made["x"].shape == (1, 3)
    assert made["x"].dtype == np.float32
    assert not made["table"].any()
    free = Input(name="x", shape=(None, None), dtype=np.dtype("float32"))
    with pytest.raises(DataError, match=r"any size in dimension 1; give --data, or --input-shape"):
        made_up([free])


def test_samples_are_repeated_to_the_size_and_other_inputs_left() -> None:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "table": np.ones((1, 3))}
    made = resized(arrays, 5, {"x"})
    assert made["x"][:, 0].tolist() == [0, 3, 0, 3, 0]
    assert made["table"].shape == (1, 3)


def test_the_first_samples_come_from_as_many_batches_as_it_takes() -> None:
    found = first_samples(batches(2, 2, 2), [X], 3)["x"]
    assert found[:, 0].tolist() == [0, 3, 6]
    assert len(first_samples(batches(2), [X], 30)["x"]) == 2


def test_the_chunks_are_all_of_one_size_and_count_each_sample_once() -> None:
    labelled = [(x, x[:, 0].long()) for x in batches(2, 3, 2)]
    found = list(chunks(labelled, [X], 3, 100))
    assert [len(chunk.inputs["x"]) for chunk in found] == [3, 3, 3]
    assert [chunk.rows for chunk in found] == [3, 3, 1]
    assert [list(chunk.inputs) for chunk in found] == [["x"]] * 3
    labels = [chunk.labels for chunk in found]
    assert [x.tolist() for x in labels if x is not None] == [[0, 3, 6], [9, 12, 15], [18]]


def test_no_more_samples_than_wanted_are_taken() -> None:
    unlabelled = [(x, None) for x in batches(2, 2, 2)]
    found = list(chunks(unlabelled, [X], 2, 3))
    assert [chunk.rows for chunk in found] == [2, 1]
    assert found[0].labels is None


def test_data_of_other_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="data has the inputs z; the model takes x"):
        first_samples([{"z": torch.zeros(2, 3)}], [X], 1)
