"""Torch-TensorRT 2.13's own Python code with our operator, converter and settings; needs no GPU.

It runs in a process of its own, up to engines that the real builder of TensorRT-RTX makes; see
`torch_tensorrt_on_cpu` for what is not real.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_tensorrt_on_cpu

from quantkit.targets import _torch_tensorrt_lists as lists
from quantkit.targets import _torch_tensorrt_options as options

#: Where `make test` puts the wheel; it cannot be among the packages, for it does not import.
WHEEL = Path(sys.prefix) / "torch-tensorrt"
VERSION = "2.13.0"
SCENARIOS = ("lists", "folding", "splits", "ignores", "shares", "formats", "files", "just_in_time")


def _missing() -> str | None:
    if not (WHEEL / "torch_tensorrt").is_dir():
        return f"needs the wheel: pip install --no-deps --target {WHEEL} torch-tensorrt=={VERSION}"
    if not torch.__version__.startswith("2.13."):
        return f"torch_tensorrt {VERSION} is for torch 2.13, this is {torch.__version__}"
    if torch.version.cuda is not None:
        return "stands in for a CUDA build of torch, and this is one"
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return 'TensorRT-RTX is not installed: pip install "quantkit[rtx]"'
    return None


pytestmark = [
    pytest.mark.skipif(_missing() is not None, reason=_missing() or ""),
    pytest.mark.slow,
]

INT8, FP8 = ["correlation", "Int8", ["Int8"]], ["correlation", "FP8", ["FP8"]]
#: The layers of the small ResNet: six convolutions and a product.
RESNET = [INT8] * 6 + [["gemm", "Int8", ["Int8"]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Any]:
    """What each scenario of `torch_tensorrt_on_cpu` came to."""
    folder = tmp_path_factory.mktemp("torch-tensorrt")
    answers = folder / "answers.json"
    program = [sys.executable, "-P", torch_tensorrt_on_cpu.__file__]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run(
        [*program, str(WHEEL), str(folder), str(answers), *SCENARIOS],
        env=os.environ
        | {"PYTHONPATH": paths, "QUANTKIT_STATE": str(folder / "state"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(answers.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def scenario(told: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    """The answers of one scenario."""
    answer = told[request.param]
    if isinstance(answer, dict) and "error" in answer:
        pytest.fail(answer["error"])
    return answer


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", [name], indirect=True, ids=[name])


@of("lists")
def test_names_of_options_are_those_of_its_settings(scenario: Any) -> None:
    assert scenario["version"] == VERSION == options.VERSION
    assert sorted(scenario["settings"]) == sorted(options.SETTINGS)


@of("lists")
def test_lists_of_operators_are_those_of_its_registries(scenario: Any) -> None:
    assert scenario["version"] == lists.VERSION
    assert scenario["converted"] == sorted(lists.CONVERTED)
    # In place, backward and for outputs that are given: not met in a program for inference.
    kept = {name for name in scenario["kept"] if name in lists.KEPT}
    assert kept == lists.KEPT
    left_out = [name for name in scenario["kept"] if name.startswith("aten.")]
    odd = ("_.default", "_.Scalar", "_.Tensor", "_.Scalar_Other", "grid_sampler")
    assert [
        name
        for name in sorted(set(left_out) - lists.KEPT)
        if not name.endswith(("out", "grad_input", *odd)) and "backward" not in name
    ] == []
    assert set(scenario["rewritten"]) >= lists.REWRITTEN


@of("ignores")
def test_it_drops_a_misspelt_option_without_a_word(scenario: Any) -> None:
    assert scenario == {"told": False, "warned": 0}


@of("folding")
def test_quantizers_of_weights_survive_the_folding_of_constants_when_protected(
    scenario: Any,
) -> None:
    # Two convolutions, each with a quantizer of its input and one of its weight.
    assert scenario == {"unprotected": 2, "protected": 4, "again": 4}


@of("splits")
def test_pytorchs_own_fake_quantize_splits_the_graph(scenario: Any) -> None:
    assert scenario["engines"] == [2, 2]
    assert "aten.fake_quantize_per_tensor_affine_cachemask.default" in scenario["unsupported"]
    assert any("no-converter" in finding for finding in scenario["findings"])


@of("shares")
def test_quantkits_rules_share_a_program_out_as_its_dry_run_does(scenario: Any) -> None:
    assert set(scenario) == {"encoder", "aten"}
    for name, (real, ours) in scenario.items():
        assert ours == real, name
    (real, _) = scenario["encoder"]
    assert len(real["engines"]) == 1
    assert {precision for _, precision in real["layers"]} == {"int8"}


@of("formats")
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("4 bits", [INT8, INT8]),
        ("fp8", [FP8, FP8]),
        ("weights alone", [["runtime_fusion", "Float", [kind]] for kind in ("Int8", "Int4")]),
    ],
)
def test_what_is_quantized_runs_in_few_bits(
    scenario: Any, name: str, kernels: list[object]
) -> None:
    assert scenario[name] == kernels


@of("formats")
def test_an_engine_that_a_gpu_cannot_run_is_refused_in_one_line(scenario: Any) -> None:
    said = scenario["fp8 on SM86"]
    assert "cannot compile the program" in said
    assert "Cannot compile for target(s) sm86" in said
    assert "\n" not in said


@of("files")
def test_a_file_is_built_from_a_program_with_every_layer_in_int8(scenario: Any) -> None:
    assert scenario["target"] == f"torch_tensorrt {VERSION}"
    assert scenario["kernels"] == RESNET
    assert [precision for _, precision in scenario["layers"]] == ["int8"] * 7
    assert scenario["findings"] == []
    assert scenario["calls"] == ["tensorrt.execute_engine.default", "<built-in function getitem>"]
    assert scenario["inputs"] == ["x"]


@of("files")
def test_the_engine_holds_the_very_integers_that_quantkit_computed(scenario: Any) -> None:
    assert scenario["weights"] == [True] * len(scenario["weights"])
    assert len(scenario["weights"]) >= 4


@of("files")
def test_sizes_are_those_of_shapes_and_others_are_refused_when_it_runs(scenario: Any) -> None:
    assert scenario["profile"] == ["1,3,16,16", "2,3,16,16", "4,3,16,16"]
    for size in (1, 4):  # as far as the GPU
        assert "fails on a batch: Torch not compiled with CUDA" in scenario[f"batch of {size}"]
    assert scenario["ahead"] == "Torch not compiled with CUDA enabled"
    assert "to be <= 4, but got 5" in scenario["batch of 5"]


@of("files")
def test_what_was_built_here_is_loaded_and_what_was_changed_is_not(scenario: Any) -> None:
    assert scenario["holds"] == [False, True]
    assert scenario["left"] == ["compiled.pt2", "model.pt2"]
    assert "is not loaded: no record says that it was built here" in scenario["refused"]


@of("just_in_time")
def test_under_torch_compile_weights_are_constants_of_one_engine(scenario: Any) -> None:
    # By itself torch.compile makes each weight and scale an input of the engine.
    assert scenario["seen"] == [{"inputs": 1, "engines": ["_run_on_acc_0"], "kernels": RESNET}]
    assert scenario["near"]
