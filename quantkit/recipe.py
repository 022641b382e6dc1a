"""Recipes: every choice of one run in one YAML file, to a frozen value and back."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from quantkit.errors import RecipeError
from quantkit.spec import DType, QuantSpec, Scheme
from quantkit.training_choice import TrainingChoice

#: The pass over the quantized model that makes symmetric grids of asymmetric ones.
CENTER = "center"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class TensorChoice(_Frozen):
    """How weights or activations map to a grid; the axis is the layer's own.

    Attributes:
        dtype: storage format.
        symmetric: zero in the middle of the grid.
        per: one scale per tensor, per output channel, or per group of input elements.
        group_size: elements a scale, with ``per: group``.
        bits: use fewer bits than the format stores.
        bits_without_vnni: bits to use where the processor multiplies int8 with 16-bit sums, which
            saturate (x86 without VNNI).
    """

    dtype: DType = "int8"
    symmetric: bool = True
    per: Literal["tensor", "channel", "group"] = "tensor"
    group_size: int | None = None
    bits: int | None = None
    bits_without_vnni: int | None = None

    @model_validator(mode="after")
    def _check(self) -> TensorChoice:
        if (self.per == "group") != (self.group_size is not None):
            raise ValueError("group_size is given with 'per: group', and only then")
        self.spec(axis=0)
        return self

    def spec(self, axis: int | None) -> QuantSpec:
        """The grid for a tensor whose channels (or groups) lie along ``axis``."""
        return QuantSpec(
            dtype=self.dtype,
            symmetric=self.symmetric,
            axis=None if self.per == "tensor" else axis,
            group_size=self.group_size,
            bits=self.bits,
        )


class SchemeChoice(_Frozen):
    """What is quantized; ``null`` is left in float."""

    weights: TensorChoice | None = None
    activations: TensorChoice | None = None

    @model_validator(mode="after")
    def _check(self) -> SchemeChoice:
        self.scheme()
        return self

    def scheme(self) -> Scheme:
        """The scheme with channels on axis 0, for checks that no layer is needed for."""
        return Scheme(
            weights=None if self.weights is None else self.weights.spec(axis=0),
            activations=None if self.activations is None else self.activations.spec(axis=1),
        )


class Override(_Frozen):
    """Another scheme (or ``null``: float) for the layers that match; the last match wins.

    Attributes:
        module: glob over layer names, such as ``encoder.layer.0.*``.
        operator: a kind of operator, such as ``linear`` or ``conv``.
        position: ``ends``: the first and the last layer (convolution or product) of the model, in
            the order of execution.
        scheme: their own scheme, or ``null`` to leave them in float.
    """

    module: str | None = None
    operator: Literal["conv", "conv_transpose", "linear", "matmul"] | None = None
    position: Literal["ends"] | None = None
    scheme: SchemeChoice | None

    @model_validator(mode="after")
    def _check(self) -> Override:
        if self.module is None and self.operator is None and self.position is None:
            raise ValueError(
                "an override needs 'module' (a glob), 'operator', 'position', or several of them"
            )
        return self

    def matches(self, name: str, kind: str, *, at_end: bool = False) -> bool:
        """Whether a layer is meant, by its name, kind, and whether it is the first or last."""
        named = self.module is None or fnmatch.fnmatchcase(name, self.module)
        placed = self.position is None or at_end
        return named and placed and (self.operator is None or self.operator == kind)

    def __str__(self) -> str:
        """Such as ``module=fc operator=linear``."""
        parts = {"module": self.module, "operator": self.operator, "position": self.position}
        return " ".join(f"{key}={value}" for key, value in parts.items() if value is not None)


class PlacementChoice(_Frozen):
    """Where quantizers go beside the inputs of convolutions and matrix products.

    Attributes:
        residual: which inputs of a residual add are quantized. ``skip``: TensorRT fuses the add
            into the convolution and reads the skip branch in INT8. ``both``: ONNX Runtime has an
            integer add. ``none``: adds stay in float.
        outputs: quantize what convolutions (and the adds and pools after them) put out as well:
            ONNX Runtime runs a convolution in integers only then.
        concat: ``separate`` grids for the inputs, requantized in the kernel, or one ``shared``
            grid (faster, costs some accuracy).
        attention: quantize both products of attention, or leave them in float.
        small: quantize also what is too small to gain on tensor cores (under 16 channels).
    """

    residual: Literal["skip", "both", "none"] = "skip"
    outputs: bool = False
    concat: Literal["separate", "shared"] = "separate"
    attention: bool = True
    small: bool = False


def _named(value: Any) -> Any:
    """``minmax`` is short for ``{name: minmax}``."""
    return {"name": value} if isinstance(value, str) else value


def _all_named(values: Any) -> Any:
    return [_named(value) for value in values] if isinstance(values, (list, tuple)) else values


class PlugIn(_Frozen):
    """A plug-in by its file name, with its settings."""

    name: str
    settings: dict[str, float | int | bool | str | None] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        return whole(self) if self.settings else self.name


class Recipe(_Frozen):
    """Every choice of one run.

    Attributes:
        name: the file's.
        description: for people.
        target: where the file is to run, unless export is told otherwise.
        scheme: of all layers that no override matches.
        calibrator: of activations.
        weight_calibrator: of weights, each slice by itself: the range of the values it has, or
            ``mse``, which at 4 bits cuts off what is rare.
        passes: over the float graph, and those over the quantized model, each in order.
        rounding: of weights.
        placement: where quantizers go.
        overrides: other schemes for some layers.
        training: how ``finetune`` trains.

    Example:
        >>> scheme = {"weights": {"per": "channel"}}
        >>> recipe = Recipe.model_validate({"name": "mine", "scheme": scheme})
        >>> recipe.scheme.scheme().kind
        'weight-only'
    """

    name: str
    description: str = ""
    target: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    scheme: SchemeChoice
    calibrator: Annotated[PlugIn, BeforeValidator(_named)] = PlugIn(name="minmax")
    weight_calibrator: Annotated[PlugIn, BeforeValidator(_named)] = PlugIn(name="minmax")
    passes: Annotated[tuple[PlugIn, ...], BeforeValidator(_all_named)] = (
        PlugIn(name="fold_batchnorm"),
    )
    rounding: Annotated[PlugIn, BeforeValidator(_named)] = PlugIn(name="nearest")
    placement: PlacementChoice = PlacementChoice()
    overrides: tuple[Override, ...] = ()
    training: TrainingChoice = TrainingChoice()

    @model_validator(mode="after")
    def _centers_last(self) -> Recipe:
        if self.centers and self.passes[-1].name != CENTER:
            raise ValueError(
                f"{CENTER} shifts tensors that {self.passes[-1].name} would compare with those of "
                f"the float model; name {CENTER} last"
            )
        return self

    @property
    def centers(self) -> bool:
        """Whether its passes make symmetric grids of asymmetric ones."""
        return any(choice.name == CENTER for choice in self.passes)

    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that the recipe may apply to some layer, as it is deployed."""
        own = [o.scheme for o in self.overrides if o.scheme is not None]
        schemes = tuple(choice.scheme() for choice in (self.scheme, *own))
        return tuple(s.centered for s in schemes) if self.centers else schemes

    def with_weight_bits(self, bits: int) -> Recipe:
        """For a processor of ``bits``-bit weights: take ``bits_without_vnni`` where it is fewer."""

        def fit(choice: SchemeChoice | None) -> SchemeChoice | None:
            if choice is None or choice.weights is None:
                return choice
            fewer = choice.weights.bits_without_vnni
            if fewer is None or bits >= 8:
                return choice
            weights = choice.weights.model_copy(update={"bits": fewer})
            return choice.model_copy(update={"weights": weights})

        overrides = tuple(o.model_copy(update={"scheme": fit(o.scheme)}) for o in self.overrides)
        return self.model_copy(update={"scheme": fit(self.scheme), "overrides": overrides})

    def to_yaml(self) -> str:
        """The recipe as a YAML file that reads back to the same value."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        return str(yaml.safe_dump(data, sort_keys=False))


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; its name is the file's.

    Raises:
        RecipeError: names the file, the key, the value and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a recipe's YAML file") from error
    return parse_recipe(text, name=path.stem, source=str(path))


def parse_recipe(text: str, *, name: str, source: str = "recipe") -> Recipe:
    """The recipe in a YAML text; ``source`` is what errors call it."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{source}: not YAML: {detail}; see recipes/ for examples") from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"{source}: holds {type(data).__name__}, not keys and values; start with 'scheme:'"
        )
    try:
        return Recipe.model_validate({**data, "name": name})
    except ValidationError as error:
        raise RecipeError(f"{source}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """One line for the first problem, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"] if part != "function-after") or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"no such key; there are: {', '.join(_keys_beside(first['loc']))}"
        text = f"{key}: {message}"
    elif first["type"] == "missing":
        text = f"{key}: is missing; add it"
    else:
        text = f"{key}: {first['input']!r} is not allowed: {message}"
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where an unknown one stands."""
    model: type[BaseModel] = Recipe
    inside: dict[str, type[BaseModel]] = {
        "scheme": SchemeChoice,
        "weights": TensorChoice,
        "activations": TensorChoice,
        "placement": PlacementChoice,
        "overrides": Override,
        "calibrator": PlugIn,
        "rounding": PlugIn,
        "weight_calibrator": PlugIn,
        "training": TrainingChoice,
    }
    for part in location[:-1]:
        model = inside.get(str(part), model)
    return [key for key in model.model_fields if not (model is Recipe and key == "name")]
