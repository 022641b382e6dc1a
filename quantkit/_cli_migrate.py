"""``quantkit migrate``: from a float ONNX file and a calibration cache to Q/DQ."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, count, screen, size

if TYPE_CHECKING:
    from quantkit.migrating import Migration

#: Names in a row, before it is JSON that tells all.
_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: Path
    cache: Path
    output: Path
    recipe: str
    trust_cache: bool
    strict: bool


def command(
    model: option.FloatOnnx,
    cache: option.CacheArgument,
    output: option.OnnxOutput,
    recipe: option.RecipeOption = "int8_ptq",
    trust_cache: option.TrustCache = False,
    strict: option.Strict = False,
    as_json: option.Json = False,
) -> int:
    """Turn a calibration cache of TensorRT 8.5 to 10 into Q/DQ, which TensorRT 11 needs.

    Scales of activations are those of the cache, bit for bit.

    \b
    Examples:
      quantkit migrate float.onnx float.cache -o net.onnx
      quantkit migrate float.onnx float.cache -o net.onnx --strict --json
      quantkit migrate float.onnx float.cache -o net.onnx --recipe int8_entropy --trust-cache
    """  # noqa: D301
    asked = Asked(
        model=model, cache=cache, output=output, recipe=recipe, trust_cache=trust_cache,
        strict=strict,
    )  # fmt: skip
    with screen(as_json) as show:
        return _migrate(asked, show)


def _migrate(asked: Asked, show: Screen) -> int:
    """The command, from its options to its last line; returns its exit code."""
    started = time.perf_counter()
    onnx_files.load(str(asked.model), None)
    work.require_writable(asked.output)
    recipe = work.accepted_recipe(asked.recipe, None, "auto", None, any_data=True)
    with work.working(f"reading {asked.model}"):
        from quantkit.migrating import migrate as run

        migration = run(asked.model, asked.cache, recipe, trust_cache=asked.trust_cache)
    # What scripts must not go on with is not written at all.
    refused = asked.strict and bool(migration.unranged)
    written = None
    if not refused:
        written = models.write(migration.model, asked.output, "tensorrt", plan=None, state=None)
    show.json(_as_json(asked, migration, written, time.perf_counter() - started))
    _show(asked, migration, written, show)
    return 1 if refused else 0


def _as_json(
    asked: Asked, migration: Migration, written: int | None, seconds: float
) -> dict[str, object]:
    plan = migration.model.plan
    return {
        "output": None if written is None else str(asked.output),
        "bytes": written,
        "recipe": plan.recipe,
        "cache": {
            "path": str(asked.cache),
            "header": migration.cache.header,
            "tensors": len(migration.cache.bits),
        },
        "taken": dict(migration.taken),
        "absent": list(migration.absent),
        "unranged": {tensor: list(layers) for tensor, layers in migration.unranged.items()},
        "findings": [asdict(finding) for finding in migration.findings],
        "seconds": seconds,
        "plan": json.loads(plan.to_json()),
    }


def _show(asked: Asked, migration: Migration, written: int | None, show: Screen) -> None:
    wanted = len(migration.taken) + len(migration.unranged)
    show.line(
        f"{len(migration.taken)} of {count(wanted, 'tensor')} that the plan quantizes have a range "
        f"of the cache ({migration.cache.header})",
        "bold",
    )
    show.findings(migration.findings)
    if len(migration.absent) > 1:
        show.line(f"Only in the cache: {_listed(migration.absent)}")
    show.planned(migration.model.plan, migration.model.recipe)
    if written is None:
        lacking = count(len(migration.unranged), "tensor")
        show.line(f"not ok: {lacking} without a range; nothing was written (--strict)", "bold red")
        return
    show.line(f"Wrote {asked.output}: {size(written)}", "green")
    engine = asked.output.with_suffix(".engine")
    show.line(f"Next: quantkit build {asked.output} -o {engine}", "dim", copied=True)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more (--json names all)" if more > 0 else "")
