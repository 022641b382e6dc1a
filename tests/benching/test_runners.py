"""What every runner keeps to, and which precisions each takes."""

from __future__ import annotations

import pytest

from quantkit import plugins
from quantkit.benching.planning import DEVICES, cells, runners
from quantkit.benching.runner import Precision, Runner
from quantkit.errors import RecipeError
from quantkit.hardware import Gpus
from quantkit.workflow import resolve_recipe

NAMES = plugins.names("benching.runners")
FLOAT = Precision(name="float", quantized=False)
HALF = Precision(name="float16", quantized=False, half=True)


def quantized(recipe: str) -> Precision:
    schemes = tuple(resolve_recipe(recipe, cpu="vnni").schemes())
    return Precision(name=recipe, quantized=True, schemes=schemes)


def runner(name: str) -> Runner:
    return plugins.find("benching.runners", name, Runner)()


@pytest.mark.parametrize("name", NAMES)
def test_every_runner_says_what_it_reads_and_where_it_runs(name: str) -> None:
    found = runner(name)
    assert found.reads in ("onnx", "pt2")
    assert found.form in ("onnxruntime", "tensorrt")
    assert found.devices
    assert set(found.devices) <= set(DEVICES)


@pytest.mark.parametrize("name", NAMES)
def test_every_runner_says_why_it_is_not_here_or_that_it_is(name: str) -> None:
    found = runner(name)
    for device in found.devices:
        reason = found.absent(device)
        assert reason is None or len(reason) > 10
        assert "\n" not in (reason or "")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tensorrt_rtx"])
def test_every_runner_takes_the_float_model(name: str) -> None:
    found = runner(name)
    assert [found.refuses(FLOAT, device) for device in found.devices] == [None] * len(found.devices)


def test_integers_are_timed_where_there_are_integer_kernels() -> None:
    model = quantized("int8_ptq")
    taken = {n for n in NAMES if "cpu" in (r := runner(n)).devices and not r.refuses(model, "cpu")}
    assert taken == {"inductor", "onnxruntime", "torch_compile"}
    assert "Q/DQ in float" in str(runner("eager").refuses(model, "cpu"))
    assert "no integer kernels on GPUs" in str(runner("inductor").refuses(model, "cuda"))


def test_tensorrt_refuses_what_the_target_does() -> None:
    assert "zero-point 0" in str(runner("tensorrt").refuses(quantized("int8_asymmetric"), "cuda"))
    assert "zero-point 0" in str(
        runner("torch_tensorrt").refuses(quantized("int8_asymmetric"), "cuda")
    )
    assert runner("tensorrt").refuses(quantized("int8_ptq"), "cuda") is None
    assert runner("tensorrt").half


def test_programs_compiled_ahead_are_not_compared_in_float16() -> None:
    others = [name for name in NAMES if name != "tensorrt_rtx"]  # that one asks for a GPU
    refused = {name for name in others if runner(name).refuses(HALF, "cuda")}
    assert refused == {"inductor", "torch_tensorrt"}


def test_a_runtime_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"no runner 'eagre'; there are: eager, .*did you mean"):
        runners(["eagre"])


def test_without_a_gpu_everything_on_one_is_left_out_with_the_reason() -> None:
    found, left_out = cells([], runners(None), ("cuda",), Gpus(why_none="no driver"))
    assert found == []
    assert {item.target for item in left_out} == set(NAMES)
    assert {item.reason for item in left_out} == {"no driver"}
