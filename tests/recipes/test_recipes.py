"""The contract of every recipe: it reads back, quantizes and exports, and its target takes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import onnx
import pytest
import yaml
from exported_models import Exported, assert_same

import small_models
from quantkit import numerics, plugins
from quantkit.errors import RecipeError
from quantkit.interfaces import Severity
from quantkit.onnx.lint import lint
from quantkit.recipe import Recipe, parse_recipe, read_recipe
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.targets.tensorrt_rtx import TensorRTRTX
from quantkit.workflow import quantize, resolve_recipe

NAMES = plugins.names("recipes")
FOR_TENSORRT = [n for n in NAMES if read_recipe(plugins.recipe_path(n)).target == "tensorrt"]
MODELS: dict[str, Callable[[], small_models.SmallModel]] = {
    "cnn": small_models.multi_branch,
    "transformer": small_models.encoder,
}
#: FP8 and NVIDIA's formats of 4 bits came with later GPUs.
NEWEST = TensorRTRTX(compute_capability="12.0", progress=False)

SCHEMES = {name: read_recipe(plugins.recipe_path(name)).schemes() for name in NAMES}

Get = Callable[[str, str], Exported]


def named(name: str) -> Recipe:
    return read_recipe(plugins.recipe_path(name))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A model quantized with a recipe, in the form of the recipe's target."""
    made: dict[tuple[str, str], Exported] = {}

    def get(name: str, model: str) -> Exported:
        if (name, model) not in made:
            network = MODELS[model]()
            data = [network.inputs(8, seed=seed) for seed in (1, 2)]
            quantized = quantize(
                network, name, example_inputs=network.example_inputs, calibration=data, cpu="vnni"
            )
            folder = tmp_path_factory.mktemp(f"{name}-{model}")
            made[name, model] = Exported(quantized, folder, (named(name).target,))
        return made[name, model]

    return get


every_recipe = pytest.mark.parametrize("name", NAMES)
every_model = pytest.mark.parametrize("model", MODELS)


@every_recipe
def test_a_recipe_is_named_after_its_file_and_says_what_it_is_for(name: str) -> None:
    recipe = named(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert recipe.scheme.scheme().kind != "none"
    assert resolve_recipe(name, cpu="vnni").name == name


@every_recipe
def test_a_recipe_reads_back_from_what_it_writes(name: str) -> None:
    recipe = named(name)
    assert parse_recipe(recipe.to_yaml(), name=name) == recipe
    for cpu in ("avx2", "vnni"):
        resolved = resolve_recipe(name, cpu=cpu)
        assert parse_recipe(resolved.to_yaml(), name=name) == resolved


@every_recipe
def test_a_recipes_file_holds_no_key_twice_and_its_choices_in_words(name: str) -> None:
    text = plugins.recipe_path(name).read_text(encoding="utf-8")
    keys = [line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert len(set(keys)) == len(keys)
    assert {"description", "target", "scheme"} <= set(keys)
    assert set(yaml.safe_load(text)) == set(keys)


@every_recipe
@every_model
def test_a_recipe_quantizes_layers_and_the_result_is_near_the_model(
    exported: Get, name: str, model: str
) -> None:
    files, network = exported(name, model), MODELS[model]()
    x = network.inputs(8, seed=5)
    # The CNN's one linear layer has fewer inputs than a group, and convolutions take no groups.
    without = model == "cnn" and any(s.weights and s.weights.group_size for s in SCHEMES[name])
    assert bool(files.model.plan.quantized) is not without
    assert not files.model.plan.unused
    (simulated,) = files.simulated(*x)
    assert numerics.sqnr(network(*x), simulated) > 12


@every_recipe
@every_model
def test_a_recipes_file_is_valid_and_runs_as_simulated(
    exported: Get, name: str, model: str
) -> None:
    files, form = exported(name, model), named(name).target
    onnx.checker.check_model(files.protos[form], full_check=True)
    x = MODELS[model]().inputs(6, seed=5)
    (expected,) = files.simulated(*x)
    (found,) = files.run(form, *x, optimized=False)
    assert_same(expected, found)
    # What a recipe for measurements is warned of by its target, the linter warns of as well.
    borne = {Severity.INFO, Severity.WARNING} if NEWEST.refusals(SCHEMES[name]) else {Severity.INFO}
    assert [f for f in lint(files.paths[form], form) if f.severity not in borne] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_TENSORRT])
@every_model
def test_a_recipe_for_onnx_runtime_runs_there_with_its_optimizations(
    exported: Get, name: str, model: str
) -> None:
    files = exported(name, model)
    x = MODELS[model]().inputs(6, seed=5)
    (expected,) = files.simulated(*x)
    (found,) = files.run("onnxruntime", *x, optimized=True)
    assert_same(expected, found)
    inspection = OnnxRuntime(exact=True, threads=1).inspect(files.paths["onnxruntime"])
    assert inspection.ok
    if named(name).placement.outputs:  # else ONNX Runtime computes convolutions in float
        assert inspection.covered == inspection.planned


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
@pytest.mark.parametrize("name", FOR_TENSORRT)
@every_model
def test_a_recipe_for_tensorrt_is_built_there(exported: Get, name: str, model: str) -> None:
    findings = NEWEST.refusals(SCHEMES[name])
    assert not any(f.severity is Severity.ERROR for f in findings)
    inspection = NEWEST.inspect(exported(name, model).paths["tensorrt"])
    assert inspection.ok, inspection.findings
    if not findings:  # nothing was said against it: all that is planned runs so
        assert (
            inspection.covered
            == inspection.planned
            == len(exported(name, model).model.plan.quantized)
        )


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_TENSORRT])
def test_a_recipe_for_onnx_runtime_is_refused_by_tensorrt_or_runs_there(name: str) -> None:
    refused = [f for f in NEWEST.refusals(SCHEMES[name]) if f.severity is Severity.ERROR]
    if not refused:
        assert resolve_recipe(name, target="tensorrt_rtx").name == name
        return
    with pytest.raises(RecipeError, match=f"recipe {name}: .*use the recipe int8_ptq"):
        resolve_recipe(name, target="tensorrt_rtx")


def test_the_recipe_to_start_with_is_one_of_them() -> None:
    assert "int8_ptq" in NAMES
    assert resolve_recipe("int8_ptq", target="tensorrt_rtx").target == "tensorrt"
