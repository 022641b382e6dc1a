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
    kind: Literal["int8", "w4a8", "w4a4", "weight_only", "fp8"]
    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    form: ExportForm = "tensorrt"

    def recipe(self) -> Recipe:
        """The recipe of the row."""
        base = read_recipe(recipe_path(self.base)).model_dump()
        return Recipe.model_validate(base | self.changes | {"name": self.name})


def _rounded(prefix: str, base: str, kind: Any, *roundings: Any, **changes: Any) -> list[Row]:
    """Rows of one recipe with several roundings; the first is the baseline."""
    rows: list[Row] = []
    for rounding in roundings:
        name = f"{prefix} {rounding if isinstance(rounding, str) else rounding['name']}"
        first = rows[0].name if rows else None
        rows.append(
            Row(name=name, kind=kind, base=base, changes={**changes, "rounding": rounding},
                baseline=first)
        )  # fmt: skip
    return rows


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


_IMAGES = ("equalize", "absorb_bias", "correct_bias", "reestimate_batchnorm")

ROWS: dict[str, list[Row]] = {
    RESNET20.name: [
        *_int8(*_IMAGES),
        *_rounded("w4a8", "w4a8", "w4a8", "nearest", "gptq", "descent", "adaround", "qdrop"),
        *_rounded("w4a4", "w4a4_qat", "w4a4", "nearest", "adaround", "qdrop"),
    ],
    LITE0.name: [
        *_int8(*_IMAGES),
        *_rounded("w4a8", "w4a8", "w4a8", "nearest", "gptq", "descent", "adaround", "qdrop"),
    ],
    MINILM.name: [
        *_int8("smooth", "correct_bias"),
        Row(name="int8_smoothquant", kind="int8", base="int8_smoothquant", baseline="int8_ptq"),
        *_rounded("int4", "int4_weight_only", "weight_only", "nearest", "mse", "gptq",
                  "descent", "adaround"),
        Row(name="fp8", kind="fp8", base="fp8"),
    ],
}  # fmt: skip
