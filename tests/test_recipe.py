"""A recipe is a frozen value, and what is wrong with its file is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quantkit.errors import RecipeError
from quantkit.recipe import Override, Recipe, parse_recipe, read_recipe
from quantkit.spec import QuantSpec

CHANNEL = {"per": "channel"}

TENSORS = st.one_of(
    st.builds(
        lambda dtype, symmetric, per: {"dtype": dtype, "symmetric": symmetric, "per": per},
        st.sampled_from(["int8", "uint8", "int4"]),
        st.booleans(),
        st.sampled_from(["tensor", "channel"]),
    ),
    st.just({"dtype": "fp8_e4m3", "per": "channel"}),
    st.builds(lambda bits: {"bits": bits, "bits_without_vnni": bits - 1}, st.integers(4, 8)),
)
GROUPS = st.builds(
    lambda size: {"dtype": "int4", "per": "group", "group_size": size}, st.integers(1, 256)
)
SCHEMES = st.fixed_dictionaries(
    {"weights": st.one_of(st.none(), TENSORS, GROUPS), "activations": st.one_of(st.none(), TENSORS)}
)
OVERRIDES = st.lists(
    st.fixed_dictionaries(
        {
            "module": st.sampled_from(["fc", "encoder.*", "*.[0-9]"]),
            "operator": st.sampled_from([None, "conv", "linear"]),
            "scheme": st.one_of(st.none(), SCHEMES),
        }
    ),
    max_size=3,
)
SETTINGS = st.dictionaries(
    st.sampled_from(["momentum", "bins", "percentile"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
)
RECIPES = st.fixed_dictionaries(
    {
        "description": st.text(max_size=30),
        "target": st.sampled_from(["tensorrt", "onnxruntime"]),
        "scheme": SCHEMES,
        "calibrator": st.fixed_dictionaries({"name": st.just("entropy"), "settings": SETTINGS}),
        "passes": st.lists(st.sampled_from(["fold_batchnorm", "smooth"]), max_size=2),
        "rounding": st.just("nearest"),
        "placement": st.fixed_dictionaries(
            {
                "residual": st.sampled_from(["skip", "both", "none"]),
                "outputs": st.booleans(),
                "small": st.booleans(),
            }
        ),
        "overrides": OVERRIDES,
    }
)


def parse(**data: Any) -> Recipe:
    return parse_recipe(yaml.safe_dump(data), name="mine", source="mine.yaml")


def refused(**data: Any) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(RecipeError) as caught:
        parse(**data)
    text = str(caught.value)
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text
    return text.removeprefix("mine.yaml: ")


@settings(max_examples=60, deadline=None)
@given(RECIPES)
def test_every_recipe_reads_back_from_its_own_yaml(data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate({**data, "name": "mine"})
    assert parse_recipe(recipe.to_yaml(), name="mine") == recipe


def test_an_infinite_setting_reads_back_as_one() -> None:
    entropy = {"name": "entropy", "settings": {"most": float("inf"), "least": -float("inf")}}
    recipe = parse(scheme={"weights": CHANNEL}, calibrator=entropy)
    assert recipe.calibrator.settings == entropy["settings"]
    assert parse_recipe(recipe.to_yaml(), name="mine") == recipe


def test_its_name_is_its_files(tmp_path: Path) -> None:
    path = tmp_path / "my_recipe.yaml"
    path.write_text("scheme: {weights: {per: channel}}")
    recipe = read_recipe(path)
    assert recipe.name == "my_recipe"
    assert recipe.scheme.scheme().weights == QuantSpec(axis=0)
    assert recipe.scheme.scheme().activations is None


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse(scheme={"weights": CHANNEL})
    with pytest.raises(ValidationError, match="frozen"):
        recipe.target = "onnxruntime"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.scheme.weights.bits = 4  # type: ignore[union-attr,misc]


def test_a_plugin_is_named_in_short_or_with_settings() -> None:
    short = parse(scheme={"weights": CHANNEL}, calibrator="entropy")
    long = parse(scheme={"weights": CHANNEL}, calibrator={"name": "entropy", "settings": {}})
    assert short == long


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "scheme: is missing; add it"),
        (
            {"scheme": {"weight": CHANNEL}},
            "scheme.weight: no such key; there are: weights, activations",
        ),
        (
            {"scheme": {"weights": {"type": "int8"}}},
            "scheme.weights.type: no such key; there are: dtype, symmetric, per, group_size, bits, "
            "bits_without_vnni",
        ),
        ({"scheme": {"weights": {"dtype": "int5"}}}, "scheme.weights.dtype: 'int5' is not allowed"),
        ({"scheme": {"weights": {"per": "row"}}}, "scheme.weights.per: 'row' is not allowed"),
        ({"scheme": {"weights": {"per": "group"}}}, "group_size is given with 'per: group'"),
        ({"scheme": {"weights": {"group_size": 8}}}, "group_size is given with 'per: group'"),
        ({"scheme": {"weights": {"bits": 9}}}, "bits must be from 2 to 8 for int8, got 9"),
        (
            {"scheme": {"activations": {"dtype": "fp8_e4m3", "symmetric": False}}},
            "fp8_e4m3 has no zero-point",
        ),
        (
            {"scheme": {"activations": {"per": "group", "group_size": 8}}},
            "activations per group are run by no engine",
        ),
        ({"scheme": {}, "target": "tensorflow"}, "target: 'tensorflow' is not allowed"),
        ({"scheme": {}, "overrides": [{"scheme": None}]}, "an override needs 'module'"),
        ({"scheme": {}, "overrides": [{"module": "fc"}]}, "overrides.0.scheme: is missing; add it"),
        ({"scheme": {}, "placement": {"residual": "all"}}, "placement.residual: 'all' is not"),
        ({"scheme": {}, "calibrator": {"settings": {}}}, "calibrator.name: is missing; add it"),
        ({"scheme": {}, "passes": "fold_batchnorm"}, "passes: 'fold_batchnorm' is not allowed"),
        ({"scheme": {}, "extra": 1, "other": 2}, "(and 1 more)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_with_the_key_the_value_and_what_is_allowed(
    data: dict[str, Any], told: str
) -> None:
    assert told in refused(**data)


@pytest.mark.parametrize("text", ["[1, 2]", "", "just words"])
def test_a_file_that_holds_no_keys_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="not keys and values; start with 'scheme:'"):
        parse_recipe(text, name="mine")


def test_what_is_not_yaml_is_refused_with_the_line() -> None:
    with pytest.raises(RecipeError, match=r"not YAML: .*line 2") as caught:
        parse_recipe("scheme: {\n  weights: [}", name="mine")
    assert "\n" not in str(caught.value)


def test_yaml_makes_no_python_objects() -> None:
    with pytest.raises(RecipeError, match="not YAML"):
        parse_recipe("scheme: !!python/object/apply:os.getcwd []", name="mine")


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot be read"):
        read_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml: cannot be read"):
        read_recipe(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("override", "name", "kind", "matches"),
    [
        ({"module": "fc"}, "fc", "linear", True),
        ({"module": "fc"}, "fc2", "linear", False),
        ({"module": "encoder.*"}, "encoder.layer.0", "linear", True),
        ({"module": "Encoder.*"}, "encoder.layer.0", "linear", False),
        ({"operator": "conv"}, "anything", "conv", True),
        ({"operator": "conv"}, "anything", "linear", False),
        ({"module": "fc*", "operator": "linear"}, "fc2", "linear", True),
        ({"module": "fc*", "operator": "linear"}, "fc2", "conv", False),
    ],
)
def test_an_override_matches_by_name_and_operator(
    override: dict[str, Any], name: str, kind: str, matches: bool
) -> None:
    assert Override(scheme=None, **override).matches(name, kind) is matches


def test_an_override_is_named_as_it_was_written() -> None:
    assert str(Override(module="fc", operator="linear", scheme=None)) == "module=fc operator=linear"


def test_the_schemes_are_those_of_the_recipe_and_of_its_overrides() -> None:
    recipe = parse(
        scheme={"weights": CHANNEL},
        overrides=[
            {"module": "a", "scheme": None},
            {"module": "b", "scheme": {"weights": {"dtype": "int4"}}},
        ],
    )
    assert [s.weights and s.weights.dtype for s in recipe.schemes()] == ["int8", "int4"]


@pytest.mark.parametrize(("bits", "used"), [(7, 7), (8, None)])
def test_fewer_bits_are_used_only_where_the_processor_needs_them(
    bits: int, used: int | None
) -> None:
    weights = {**CHANNEL, "bits_without_vnni": 7}
    recipe = parse(
        scheme={"weights": weights},
        overrides=[{"module": "a", "scheme": {"weights": weights}}],
    ).with_weight_bits(bits)
    assert [s.weights and s.weights.bits for s in recipe.schemes()] == [used, used]


def test_a_recipe_that_does_not_depend_on_the_processor_stays_as_it_is() -> None:
    recipe = parse(scheme={"weights": CHANNEL, "activations": {}})
    assert recipe.with_weight_bits(7) == recipe
