"""The picture of sensitivities: whatever the losses are, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from quantkit.analysis.bars import save_bars
from quantkit.analysis.formats import Format
from quantkit.analysis.losses import Loss, Part, Sensitivity
from quantkit.errors import ExportError
from quantkit.recipe import Recipe


def table(*noises: tuple[float | None, ...]) -> Sensitivity:
    """A row of losses for each layer."""
    recipe = Recipe.model_validate({"name": "own", "scheme": {"weights": {}}})
    zero = Loss(noise=0.0, metric=None, weight_bytes=4, bit_operations=1)

    def loss(noise: float | None) -> Loss | None:
        if noise is None:
            return None
        return Loss(noise=noise, metric=None, weight_bytes=1, bit_operations=1)

    parts = tuple(
        Part(name=f"a.rather.long.path.to.some.layer{i}.conv", layers=(f"layer{i}",),
             losses=tuple(map(loss, row)), in_float=zero)
        for i, row in enumerate(noises)
    )  # fmt: skip
    others = tuple(Format(name=f"w{n}", scheme=recipe.scheme) for n in range(1, len(noises[0])))
    return Sensitivity(
        recipe=recipe, formats=others, by="layer", parts=parts, samples=8, float_metric=None,
        other_bytes=0, runs=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "losses",
    [
        [(1e-4,)],
        [(1e-4, None), (1e-3, 0.5), (0.0, 2.0)],
        [(math.inf, 1e-3), (math.inf, None)],
        [(1e-5,)] * 2,
    ],
)
def test_any_losses_are_drawn_with_their_figures(
    losses: list[tuple[float | None, ...]], tmp_path: Path
) -> None:
    found = table(*losses)
    save_bars(found, tmp_path / "bars.svg")
    save_bars(found, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "bars.svg").read_text(encoding="utf-8")
    names = [f"some.layer{i}.conv" for i in range(len(losses))]
    assert [name in text for name in names] == [True] * len(names)


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to draw, since no format has any loss"):
        save_bars(table((0.0,), (None,)), tmp_path / "bars.png")
    with pytest.raises(ExportError, match=r"PNG or SVG; let its name end in \.png or \.svg"):
        save_bars(table((0.1,)), tmp_path / "bars.pdf")
    assert list(tmp_path.iterdir()) == []
