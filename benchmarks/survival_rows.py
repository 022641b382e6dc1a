"""The rows of ``benchmarks.survival``: recipes, and what each is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.zoo import LITE0, MINILM, RESNET20
from quantkit.interfaces import ExportForm
from quantkit.plugins import recipe_path
from quantkit.recipe import Recipe, read_recipe


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe to measure.

    Attributes:
        name: of the row.
        kind: the table that it stands in.
        base: the built-in recipe that it begins with.
        changes: keys of the recipe in place of the base's.
        baseline: the row that it should be no worse than; ``None`` for a baseline.
        form: of the exported file.
    """

    name: str
    kind: Literal["int8", "int8_per_tensor", "w4a8", "w4a4", "weight_only", "fp8"]
    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    form: ExportForm = "tensorrt"

    def recipe(self) -> Recipe:
        """The recipe of the row."""
        base = read_recipe(recipe_path(self.base)).model_dump()
        return Recipe.model_validate(base | self.changes | {"name": self.name})


def _rounded(
    prefix: str,
    base: str,
    kind: Any,
    *roundings: Any,
    form: ExportForm = "tensorrt",
    **changes: Any,
) -> list[Row]:
    """Rows of one recipe with several roundings; the first is the baseline."""
    rows: list[Row] = []
    for rounding in roundings:
        name = f"{prefix} {rounding if isinstance(rounding, str) else rounding['name']}"
        first = rows[0].name if rows else None
        rows.append(
            Row(name=name, kind=kind, base=base, changes={**changes, "rounding": rounding},
                baseline=first, form=form)
        )  # fmt: skip
    return rows


def _over(base: str, kind: Any, prefix: str, changes: dict[str, Any], *steps: str) -> list[Row]:
    """Rows that each add one pass behind those of the row before; the first has none of them."""
    rows: list[Row] = []
    for index, step in enumerate(("nearest", *steps)):
        passes = ["fold_batchnorm", *steps[:index]]
        rows.append(
            Row(name=f"{prefix} {'+ ' * (index > 0)}{step}", kind=kind, base=base,
                changes=changes | {"passes": sorted(passes, key=_ORDER.index)},
                baseline=rows[-1].name if rows else None)
        )  # fmt: skip
    return rows


#: Of passes, as `quantize` runs them best.
_ORDER = ("fold_batchnorm", "equalize", "absorb_bias", "correct_bias")
#: Weights with one scale a tensor, which equalization is for.
_PER_TENSOR = {"scheme": {"weights": {"per": "tensor"}, "activations": {}}}


def _int8(*passes: str) -> list[Row]:
    """The best recipe, passes one by one over ``int8_ptq``, and roundings of it."""
    rows = [
        Row(name="int8_ptq", kind="int8", base="int8_ptq"),
        Row(name="int8_accurate", kind="int8", base="int8_accurate", baseline="int8_ptq"),
        Row(name="int8_centered", kind="int8", base="int8_centered", baseline="int8_ptq"),
    ]
    rows += [
        Row(name=f"int8 {name}", kind="int8", base="int8_ptq",
            changes={"passes": ["fold_batchnorm", name]}, baseline="int8_ptq")
        for name in passes
    ]  # fmt: skip
    rows += [
        Row(name=f"int8 {name}", kind="int8", base="int8_ptq",
            changes={"rounding": name}, baseline="int8_ptq")
        for name in ("mse", "gptq", "descent", "adaround")
    ]  # fmt: skip
    return rows


def _images() -> list[Row]:
    """What convolutions have beside."""
    aligned = {"passes": ["fold_batchnorm", "align_input", "center"]}
    return [
        *_int8("correct_bias", "reestimate_batchnorm"),
        Row(name="int8_centered + align_input", kind="int8", base="int8_centered",
            changes=aligned, baseline="int8_centered"),
        *_over("int8_ptq", "int8_per_tensor", "int8 per tensor", _PER_TENSOR,
               "correct_bias", "equalize", "absorb_bias"),
    ]  # fmt: skip


#: Block reconstruction in steps that fit a benchmark.
_QDROP = {"name": "qdrop", "settings": {"iterations": 300}}
_QDROP_PHOTOS = {
    "name": "qdrop",
    "settings": {"samples": 128, "iterations": 100, "learning_rate": 0.05, "begin": "gptq"},
}
_W4A4 = {"passes": ["fold_batchnorm", "align_input", "correct_bias"]}

ROWS: dict[str, list[Row]] = {
    RESNET20.name: [
        *_images(),
        *_rounded("w4a8", "w4a8", "w4a8", "nearest", "gptq", "descent", "adaround", _QDROP),
        *_rounded("w4a4", "w4a4_qat", "w4a4", "nearest", "adaround", _QDROP,
                  form="onnxruntime", **_W4A4),
    ],
    LITE0.name: [
        *_images(),
        *_rounded("w4a8", "w4a8", "w4a8", "nearest", "gptq", "descent", "adaround", _QDROP_PHOTOS),
    ],
    MINILM.name: [
        *_int8("smooth", "correct_bias"),
        Row(name="int8_smoothquant", kind="int8", base="int8_smoothquant", baseline="int8_ptq"),
        *_rounded("int4", "int4_weight_only", "weight_only", "nearest", "mse", "gptq",
                  "descent", "adaround"),
        Row(name="int4 awq", kind="weight_only", base="int4_weight_only", baseline="int4 nearest",
            changes={"rounding": "nearest", "passes": ["fold_batchnorm", "awq"]}),
        Row(name="fp8", kind="fp8", base="fp8"),
    ],
}  # fmt: skip
