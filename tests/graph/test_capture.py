"""One graph of a model: any batch size, any form of input and output, train and eval."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import small_models
from quantkit.errors import CaptureError, ModelFileError
from quantkit.graph.capture import Capture, capture, load_program, recapture, set_training
from quantkit.workflow import prepare


def assert_same(model: nn.Module, captured: Capture, *args: Any, **kwargs: Any) -> None:
    """The graph computes what the model does, bit for bit."""
    expected, found = model(*args, **kwargs), captured.module(*args, **kwargs)
    assert type(found) is type(expected)
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def assert_exports_again(captured: Capture) -> None:
    """Export captures the graph a second time, with the dynamic dimensions of the first."""
    program = recapture(captured.module, captured.args, captured.kwargs, captured.dynamic_shapes)
    again = capture(program, ())
    assert again.input_names == captured.input_names
    assert again.dynamic_dims == captured.dynamic_dims


@pytest.mark.parametrize("make", small_models.ALL)
def test_a_captured_model_runs_at_any_batch_size(
    make: Callable[[], small_models.SmallModel],
) -> None:
    model = make()
    captured = capture(model, model.example_inputs)
    for batch in (1, 2, 7):
        assert_same(model, captured, *model.inputs(batch))
    assert captured.dynamic_dims == {0}


def test_an_example_of_one_row_is_enough_for_a_dynamic_batch() -> None:
    model = small_models.mlp()
    captured = capture(model, model.inputs(1))
    assert captured.args[0].shape[0] == 2
    for batch in (1, 2, 7):
        assert_same(model, captured, *model.inputs(batch))


def test_shapes_are_static_on_request() -> None:
    model = small_models.mlp()
    captured = capture(model, model.inputs(1), dynamic_shapes=None)
    assert captured.dynamic_dims == frozenset()
    assert captured.args[0].shape[0] == 1
    assert_same(model, captured, *model.inputs(1))
    (node,) = [n for n in captured.module.graph.nodes if n.op == "placeholder"]
    assert tuple(node.meta["val"].shape) == (1, 32)
    assert_exports_again(captured)


def test_other_dimensions_are_dynamic_where_they_are_named() -> None:
    model = small_models.encoder()
    dim = torch.export.Dim.DYNAMIC
    captured = capture(model, model.example_inputs, dynamic_shapes=({0: dim, 1: dim},))
    assert captured.dynamic_dims == {0, 1}
    assert_same(model, captured, torch.randn(3, 5, 64))
    assert_exports_again(captured)


class Flexible(nn.Module):
    """Positional, optional and keyword inputs; a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> Any:
        y = self.fc(x)
        y = y if mask is None else y * mask
        y = y if scale is None else y * scale
        return {"y": y, "both": (y + 1, [y - 1])}


class Variadic(nn.Module):
    """Any number of inputs."""

    def forward(self, *tensors: Tensor, scale: Tensor) -> Any:
        return sum(tensors) * scale


class Nested(nn.Module):
    """A dictionary in."""

    def forward(self, batch: dict[str, Any]) -> Any:
        return batch["a"] + batch["rest"][0]


def rows(count: int) -> Tensor:
    return torch.randn(count, 8)


@pytest.mark.parametrize(
    ("model", "make", "names"),
    [
        (Flexible(), lambda n: ((rows(n),), {}), ("x",)),
        (Flexible(), lambda n: ((), {"x": rows(n)}), ("x",)),
        (Flexible(), lambda n: ((rows(n), rows(n)), {}), ("x", "mask")),
        (Flexible(), lambda n: ((rows(n),), {"scale": rows(n)}), ("x", "scale")),
        (
            Flexible(),
            lambda n: ((rows(n),), {"scale": rows(n), "mask": rows(n)}),
            ("x", "scale", "mask"),
        ),
        (Variadic(), lambda n: ((rows(n), rows(n)), {"scale": rows(n)}), None),
        (Nested(), lambda n: (({"a": rows(n), "rest": [rows(n)]},), {}), None),
    ],
)
def test_inputs_are_positional_keyword_variadic_or_nested(
    model: nn.Module, make: Callable[[int], Any], names: tuple[str, ...] | None
) -> None:
    args, kwargs = make(2)
    captured = capture(model, args, kwargs)
    for batch in (1, 7):
        args, kwargs = make(batch)
        assert_same(model, captured, *args, **kwargs)
    if names is not None:
        assert captured.input_names == names
    assert_exports_again(captured)


def test_dynamic_keywords_keep_their_shapes_in_whatever_order_they_are_given() -> None:
    kwargs = {"scale": torch.randn(1), "mask": rows(2)}
    dim = {0: torch.export.Dim.DYNAMIC}
    shapes = {"x": dim, "mask": dim, "scale": None}
    model = Flexible()
    captured = capture(model, (rows(2),), kwargs, dynamic_shapes=shapes)
    assert captured.dynamic_shapes == (dim, None, dim)
    assert_same(model, captured, rows(5), **{**kwargs, "mask": rows(5)})
    assert_exports_again(captured)


@dataclass
class Output:
    """What transformers return, in small."""

    logits: Tensor
    hidden: tuple[Tensor, ...]


torch.export.register_dataclass(Output, serialized_type_name="tests.graph.test_capture.Output")


@dataclass
class Unregistered:
    """A class that torch knows nothing of."""

    logits: Tensor


class Returns(nn.Module):
    """A model that wraps what it returns."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x + 1)


def test_outputs_may_be_dataclasses() -> None:
    model = Returns(lambda y: Output(logits=y, hidden=(y, y * 2)))
    captured = capture(model, (rows(2),))
    found = captured.module(rows(5))
    assert isinstance(found, Output)
    assert found.hidden[1].shape == (5, 8)


def test_an_unknown_output_class_is_named_with_the_way_out() -> None:
    with pytest.raises(CaptureError, match=r"Unregistered.*torch\.export\.register_dataclass"):
        capture(Returns(lambda y: Unregistered(logits=y)), (rows(2),))


# --- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("keywords", [True, False])
def test_an_exported_program_is_taken_as_it_is(
    tmp_path: Path, dynamic: bool, keywords: bool
) -> None:
    model = Flexible()
    kwargs = {"mask": rows(2)} if keywords else {}
    dim = {0: torch.export.Dim.DYNAMIC}
    shapes = {"x": dim, "mask": dim} if keywords else {"x": dim}
    program = torch.export.export(
        model, (rows(2),), kwargs, dynamic_shapes=shapes if dynamic else None
    )
    torch.export.save(program, tmp_path / "model.pt2")
    captured = capture(load_program(tmp_path / "model.pt2"), ())
    assert captured.dynamic_dims == ({0} if dynamic else frozenset())
    size = 5 if dynamic else 2
    assert_same(model, captured, rows(size), **{name: rows(size) for name in kwargs})
    assert_exports_again(captured)


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        load_program(tmp_path / "absent.pt2")
    (tmp_path / "other.pt2").write_bytes(b"not a program")
    with pytest.raises(ModelFileError, match=r"other\.pt2: not a program that torch .* can read"):
        load_program(tmp_path / "other.pt2")


# --- train and eval ------------------------------------------------------------------------------


def mixed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(16 * 36, 32),
        )  # fmt: skip


def test_the_users_model_keeps_its_mode_and_its_parameters() -> None:
    model = mixed()
    model[1].eval()  # frozen, as in much fine-tuning
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model, "int8_ptq", example_inputs=(torch.randn(2, 3, 8, 8),))
    prepared.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_and_batch_norm_switch_between_training_and_evaluation() -> None:
    model = mixed().eval()
    captured = capture(model, (torch.randn(2, 3, 8, 8),))
    x = torch.randn(8, 3, 8, 8)
    assert_same(model, captured, x)

    model = copy.deepcopy(model).train()
    set_training(captured.module, True)
    mean = captured.module.get_buffer("1.running_mean").clone()
    torch.manual_seed(1)
    found = captured.module(x)
    torch.manual_seed(1)
    assert torch.equal(found, model(x))
    assert not torch.equal(captured.module.get_buffer("1.running_mean"), mean)
    assert not torch.equal(captured.module(x), found), "dropout draws anew"
    model(x)

    set_training(captured.module, False)
    assert_same(model.eval(), captured, x)


def test_a_quantized_model_trains_and_evaluates_as_any_module() -> None:
    model = mixed().eval()
    x = torch.randn(8, 3, 8, 8)
    recipe = "int8_ptq"
    prepared = prepare(model, recipe, example_inputs=(x,))
    prepared.simulate(False)
    assert not prepared.training
    torch.testing.assert_close(prepared(x), model(x))
    prepared.train()
    assert prepared.training
    assert not torch.equal(prepared(x), prepared(x))
    prepared.eval()
    assert torch.equal(prepared(x), prepared(x))
    torch.testing.assert_close(prepared(x), model(x))


def test_a_batch_norm_without_statistics_uses_the_batchs_in_both_modes() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 16, 3)).eval()
    captured = capture(model, (torch.randn(2, 3, 8, 8),))
    for training in (False, True, False):
        set_training(captured.module, training)
        assert_same(model, captured, torch.randn(4, 3, 8, 8))


def test_dropout_that_is_always_on_stays_on() -> None:
    model = Returns(lambda y: F.dropout(y, 0.5)).eval()
    captured = capture(model, (rows(2),))
    for training in (True, False):
        set_training(captured.module, training)
        assert (captured.module(torch.ones(64, 8)) == 0).any()


# --- what cannot be captured ---------------------------------------------------------------------


class Branches(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Counts(nn.Module):
    """A size that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.abs().sum().item())]


class Fixes(nn.Module):
    """A batch size in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, -1)


class Breaks(nn.Module):
    """A defect of the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("absent")


@pytest.mark.parametrize(
    ("model", "line", "way_out"),
    [
        (Branches(), "if x.sum() > 0:", "replace it by torch.where or torch.cond"),
        (Counts(), "return x[: int(", "replace it by torch.where or torch.cond"),
        (Breaks(), 'raise KeyError("absent")', "make torch.export.export"),
        (Fixes(), None, "pass dynamic_shapes=None"),
    ],
)
def test_a_model_that_cannot_be_captured_gets_one_line_with_the_place_and_the_way_out(
    model: nn.Module, line: str | None, way_out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, (torch.randn(4, 8),))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{type(model).__name__} cannot be captured")
    assert way_out in text
    assert " with x float32 (4, 8): " in text
    assert ". Way out: " in text
    if line is not None:
        lines = Path(__file__).read_text(encoding="utf-8").splitlines()
        number = next(i for i, found in enumerate(lines, 1) if found.strip().startswith(line))
        assert f"at test_capture.py:{number} in forward" in text
    assert capfd.readouterr().err == ""


def test_a_fixed_batch_can_be_captured_statically() -> None:
    captured = capture(Fixes(), (torch.randn(4, 8),), dynamic_shapes=None)
    assert_same(Fixes(), captured, torch.randn(4, 8))


def test_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"must be a tuple, got Tensor; write \(x,\)"):
        capture(nn.Linear(8, 8), torch.randn(2, 8))  # type: ignore[arg-type]


def test_inputs_that_the_model_does_not_take_are_named() -> None:
    with pytest.raises(CaptureError, match=r"Linear does not take the example inputs .*: too many"):
        capture(nn.Linear(8, 8), (rows(2), rows(2)))
    with pytest.raises(CaptureError, match=r"Linear cannot be captured.*Way out"):
        capture(nn.Linear(4, 8), (rows(2),))


class Keywords(nn.Module):
    """Inputs without names of their own."""

    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["x"] + 1


LINEAR = nn.Linear(8, 8)
CONV = nn.Conv2d(3, 8, 3)


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        (LINEAR, torch.ones(4, 8, dtype=torch.int64), "input int64 (4, 8)"),
        (LINEAR, torch.ones(4, 7), "input float32 (4, 7)"),
        (copy.deepcopy(LINEAR).half(), torch.ones(4, 8), "input float32 (4, 8)"),
        (CONV, torch.ones(2, 3, 8, 8, dtype=torch.int32), "input int32 (2, 3, 8, 8)"),
        (CONV, torch.ones(2, 1, 8, 8), "input float32 (2, 1, 8, 8)"),
        (copy.deepcopy(CONV).half(), torch.ones(2, 3, 8, 8), "input float32 (2, 3, 8, 8)"),
        (nn.Embedding(8, 8), torch.ones(2, 3), "input float32 (2, 3)"),
    ],
)
@pytest.mark.parametrize("dynamic", ["batch", None])
def test_data_of_another_shape_or_type_are_named_and_are_the_way_out(
    model: nn.Module, inputs: Tensor, told: str, dynamic: Any
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, (inputs,), dynamic_shapes=dynamic)
    text = str(caught.value)
    assert "\n" not in text
    assert f"with {told}: " in text
    assert ". Way out: check the shape and dtype of the data" in text
    assert "torch.export.export" not in text


def test_half_data_fit_a_half_model() -> None:
    model = copy.deepcopy(LINEAR).half()
    assert_same(model, capture(model, (torch.ones(4, 8).half(),)), torch.ones(3, 8).half())


def test_inputs_that_forward_takes_without_names_are_to_be_written_out() -> None:
    with pytest.raises(CaptureError, match=r"with x float32 \(4, 8\).*as forward\(self, x\)"):
        capture(Keywords(), (), {"x": rows(4)})
