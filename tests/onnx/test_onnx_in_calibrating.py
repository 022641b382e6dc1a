"""Observers fed by ONNX Runtime: the float model's own tensors, a few samples at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import model_of, small_net, weight
from torch import Tensor

from quantkit.batches import as_batches
from quantkit.calibrating import collect
from quantkit.calibrators.minmax import MinMax
from quantkit.data import Batch
from quantkit.errors import DataError
from quantkit.observer import Observer
from quantkit.onnx.calibrating import OnnxRunner, floating_tensors, observe_all
from quantkit.onnx.reading import read_onnx
from quantkit.spec import QuantSpec

make = helper.make_node


class Recorder(Observer):
    """Keeps what it sees, as no observer of the package does."""

    def __init__(self) -> None:
        super().__init__(QuantSpec(), MinMax())
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x


def read(model: onnx.ModelProto) -> ir.Model:
    return read_onnx(ir.from_proto(model))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


def runner_of(model: ir.Model) -> tuple[OnnxRunner, dict[str, Recorder]]:
    recorders = {name: Recorder() for name in floating_tensors(model.graph)}
    return OnnxRunner(model, recorders), recorders


def test_every_float_tensor_is_seen_as_the_float_model_has_it() -> None:
    model = read(small_net())
    runner, recorders = runner_of(model)
    assert set(recorders) == {"image", *"anrcsupfh", "logits"}
    runner({"image": images(4).numpy()})
    wanted = [name for name in recorders if name != "image"]
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted)
    expected = ReferenceEvaluator(proto).run(None, {"image": images(4).numpy()})
    for name, value in zip(wanted, expected, strict=True):
        (seen,) = recorders[name].seen
        np.testing.assert_allclose(seen.numpy(), value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert torch.equal(recorders["image"].seen[0], images(4))


@pytest.mark.parametrize(
    "batches",
    [
        [images(20)],
        [images(20)[:3], images(20)[3:]],
        [(images(20),)],
        [{"image": images(20)}],
        [images(20).numpy()],
        [Batch(inputs={"image": images(20)}, labels=torch.zeros(20))],
    ],
)
def test_batches_of_any_form_run_eight_samples_at_a_time(batches: list[Any]) -> None:
    runner, recorders = runner_of(read(small_net()))
    collect(runner, batches)
    assert [len(seen) for seen in recorders["logits"].seen] == [8, 8, 4]
    assert torch.equal(torch.cat(recorders["image"].seen), images(20))


def test_a_file_of_a_fixed_batch_runs_that_many() -> None:
    runner, recorders = runner_of(read(small_net(batch=4)))
    collect(runner, [images(6), images(6)])
    assert [len(seen) for seen in recorders["logits"].seen] == [4, 4, 4]
    with pytest.raises(DataError, match="2 samples are left over, and the file takes 4 at a time"):
        collect(runner, [images(6)])


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(2, 16, 8, 9), r"input 'image': got float32 \(2, 16, 8, 9\), expected"),
        (torch.zeros(2, 16, 8, 8).double(), "got float64"),
        ((images(2), images(2)), "has 2 inputs, the model takes 1: image; leave the labels out"),
        (
            {"picture": images(2)},
            r"has the inputs \['picture'\], the example inputs are",
        ),
        (torch.full((2, 16, 8, 8), torch.nan), "NaN"),
    ],
)
def test_what_the_model_does_not_take_is_told(batch: Any, said: str) -> None:
    runner, _ = runner_of(read(small_net()))
    with pytest.raises(DataError, match=said):
        list(runner.calls(as_batches([batch])))


def test_a_batch_that_the_runtime_refuses_is_told() -> None:
    model = model_of([make("Gather", ["table", "i"], ["r"]), make("Relu", ["r"], ["y"])],
                     {}, {"y": ["N", 16]}, {"table": weight(4, 16)})  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["N"]))
    runner, _ = runner_of(read(model))
    with pytest.raises(DataError, match=r"cannot run the model on i \(1,\)"):
        runner({"i": np.array([9])})


def test_observers_of_all_tensors_find_what_each_alone_would() -> None:
    model = read(small_net())
    observers = observe_all(model.graph, MinMax())
    collect(OnnxRunner(model, observers), [images(16)])
    runner, recorders = runner_of(model)
    collect(runner, [images(16)])
    for name, observer in observers.items():
        low, high = observer.range()
        seen = torch.cat([part.flatten() for part in recorders[name].seen])
        assert (low.item(), high.item()) == (seen.min().item(), seen.max().item()), name


def test_the_fingerprint_is_of_the_weights() -> None:
    def fingerprint(change: Callable[[np.ndarray], np.ndarray]) -> str:
        array = change(weight(16, 16))
        model = model_of([make("MatMul", ["x", "w"], ["y"])], {"x": ["N", 16]}, {"y": ["N", 16]},
                         {"w": array})  # fmt: skip
        return runner_of(read(model))[0].fingerprint

    assert fingerprint(lambda a: a) == fingerprint(lambda a: a.copy())
    assert fingerprint(lambda a: a) != fingerprint(lambda a: a * 2)
