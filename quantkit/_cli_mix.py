"""``quantkit mix``: a recipe of mixed precision within a budget, of measured sensitivities."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, count, screen, size
from quantkit.errors import ModelFileError

if TYPE_CHECKING:
    from quantkit.analysis.losses import Sensitivity
    from quantkit.analysis.mixed import Budget, Mixture

_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%|[kMG]?B)?")
_UNITS = {None: 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def fraction_or_bytes(text: str) -> float | int:
    """A fraction as a float, ``60%`` or ``0.6``, or bytes as an int, ``3.5MB`` or ``3500000``.

    Example:
        >>> fraction_or_bytes("60%"), fraction_or_bytes("0.6"), fraction_or_bytes("3.5MB")
        (0.6, 0.6, 3500000)
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: write 60%, 0.6, 3.5MB or a number of bytes")
    value, unit = float(match[1]), match[2]
    if unit == "%":
        return value / 100.0
    return value if unit is None and value <= 1.0 else round(value * _UNITS[unit])


def _size(text: str | None) -> str | None:
    if text is not None:
        fraction_or_bytes(text)
    return text


def _fraction(text: str | None) -> str | None:
    if text is not None and isinstance(fraction_or_bytes(text), int):
        raise typer.BadParameter(f"{text!r} is no fraction: write 50% or 0.5")
    return text


Measured = Annotated[
    Path,
    typer.Argument(
        metavar="LAYERS.json", show_default=False, help="What quantkit sensitivity -o wrote."
    ),
]
Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="OUT.yaml", show_default=False, help="The recipe."),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        callback=_size,
        help="Of all parameters: 60% of what they take by the recipe, or bytes, such as 3.5MB.",
    ),
]
Operations = Annotated[
    str | None,
    typer.Option(
        "--bit-operations",
        metavar="SHARE",
        callback=_fraction,
        help="Multiplications times the bits of both factors: 50% of those by the recipe.",
    ),
]
FloatLayers = Annotated[
    int | None,
    typer.Option("--float-layers", metavar="N", min=0, help="Leave so many in float at most."),
]


def command(
    measured: Measured,
    output: Output,
    size: Size = None,
    bit_operations: Operations = None,
    float_layers: FloatLayers = None,
    as_json: option.Json = False,
) -> None:
    """Choose a format for each layer, of least loss within a budget, and write it as a recipe.

    \b
    Examples:
      quantkit mix layers.json --size 60% -o mixed.yaml
      quantkit mix layers.json --bit-operations 75% -o mixed.yaml
      quantkit mix layers.json --float-layers 1 -o mixed.yaml
    """  # noqa: D301
    with screen(as_json) as show:
        work.require_writable(output)
        if not measured.is_file():
            raise ModelFileError(
                f"{measured}: no such file; give one that quantkit sensitivity -o wrote"
            )
        if size is None and bit_operations is None and float_layers is None:
            raise work.UsageError("no budget: give --size, --bit-operations or --float-layers")
        with work.working("loading"):
            from quantkit.analysis.mixed import mix
            from quantkit.files import replacing
        found = _read(measured)
        mixture = mix(found, _budget(size, bit_operations, float_layers))
        with replacing(output) as temporary:
            temporary.write_text(mixture.recipe.to_yaml(), encoding="utf-8")
        _told(found, mixture, output, show)


def _read(path: Path) -> Sensitivity:
    from quantkit.analysis.losses import Sensitivity

    try:
        return Sensitivity.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelFileError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _budget(size: str | None, operations: str | None, layers: int | None) -> Budget:
    from quantkit.analysis.mixed import Budget

    limit = None if size is None else fraction_or_bytes(size)
    return Budget(
        size=limit if isinstance(limit, float) else None,
        size_bytes=limit if isinstance(limit, int) else None,
        bit_operations=None if operations is None else fraction_or_bytes(operations),
        float_layers=layers,
    )


def _told(found: Sensitivity, mixture: Mixture, output: Path, show: Screen) -> None:
    """The choice, format by format, and what it comes to."""
    groups: dict[str, list[str]] = {}
    for part, format in mixture.chosen:
        groups.setdefault(format, []).append(part)
    show.json(
        {"output": str(output), "sqnr": mixture.sqnr, "size_bytes": mixture.size_bytes,
         "size": mixture.size, "bit_operations": mixture.bit_operations,
         "chosen": dict(mixture.chosen)}
    )  # fmt: skip
    rows = [(str(len(parts)), format, ", ".join(parts)) for format, parts in groups.items()]
    show.table((f"{found.by}s", "format", "which"), rows)
    from quantkit.analysis.losses import decibels

    own = decibels(found.together())
    show.line(
        f"Predicted SQNR {mixture.sqnr:.1f} dB ({found.recipe.name}: {own:.1f} dB); "
        f"{size(mixture.size_bytes)} in the bits that are used, {mixture.size:.1%} of "
        f"{found.recipe.name}; {mixture.bit_operations:.1%} of its bit operations",
        "bold",
    )
    changed = count(len(mixture.chosen) - len(groups.get(found.recipe.name, [])), found.by)
    show.line(f"Wrote {output}: {changed} not as in {found.recipe.name}", "green")
    show.line(
        f"Next: quantkit quantize MODEL --recipe {output} --data DATA.yaml -o OUT.onnx", "dim"
    )
