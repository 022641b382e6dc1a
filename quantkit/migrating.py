"""The bridge between TensorRT's calibration caches and explicit Q/DQ, in both directions.

TensorRT 11 reads no calibration caches. `migrate` turns one, and the float ONNX file that it was
made for, into a model with the same ranges as Q/DQ; `cache_of` writes a cache that TensorRT 10
reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quantkit import plugins
from quantkit.calibrating import Checkpoint, choose, collect
from quantkit.errors import ModelFileError, RecipeError
from quantkit.graph.abstract import Graph, Kind
from quantkit.graph.plan import Edge
from quantkit.interfaces import Calibrator, Finding, Severity
from quantkit.numerics import SCALE_FLOOR, QParams
from quantkit.observer import Observer
from quantkit.onnx.calibrating import OnnxRunner, observe_all
from quantkit.onnx.facts import read_proto
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.onnx.reading import read_onnx
from quantkit.recipe import Recipe
from quantkit.spec import QuantSpec
from quantkit.tensorrt.cache import DEFAULT_VERSION, CalibrationCache, read_cache
from quantkit.tensorrt.record import require_own
from quantkit.workflow import resolve_recipe
from quantkit.workflow_onnx import prepare_onnx, round_onnx_weights

#: What TensorRT's caches hold ranges of.
_SPEC = QuantSpec()
#: What a tensor's values are no other than those of its input.
_SAME_VALUES = frozenset({Kind.MOVE})
#: What puts out no other values than those of its input, if not all of them.
_NO_NEW_VALUES = frozenset({Kind.MOVE, Kind.MAX_POOL, Kind.SLICE, Kind.UPSAMPLE})


@dataclass(frozen=True, kw_only=True)
class Migration:
    """A model with the ranges of a calibration cache, and what did not fit.

    Attributes:
        model: ready for ``export_onnx``.
        cache: what was read.
        taken: of each quantized tensor, the tensor of the cache whose scale it has.
        absent: tensors of the cache that the model does not have.
        unranged: tensors that the plan would quantize and that have no range, each with the layers
            that are in float for it.
    """

    model: QuantizedOnnx
    cache: CalibrationCache = field(repr=False)
    taken: Mapping[str, str]
    absent: tuple[str, ...]
    unranged: Mapping[str, tuple[str, ...]]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What did not fit, for people."""
        found = [
            Finding(
                severity=Severity.WARNING,
                code="no-range",
                where=tensor,
                why=f"The cache has no range for it: {', '.join(layers) or 'no layer'} in float.",
                fix="Calibrate again with quantkit quantize, or use the file that the cache was "
                "made for.",
            )
            for tensor, layers in self.unranged.items()
        ]
        if self.absent:
            more = "" if len(self.absent) == 1 else f" and {len(self.absent) - 1} more"
            found.append(
                Finding(
                    severity=Severity.INFO,
                    code="unknown-tensor",
                    where=self.absent[0],
                    why=f"The cache has a range for it{more}, and the model no such tensor.",
                    fix="Nothing, if TensorRT named it (Unnamed Layer …); else check that the "
                    "cache was made for this file.",
                )
            )
        return tuple(found)


def migrate(
    model: Path | str,
    cache: Path | str | CalibrationCache,
    recipe: str | Path | Recipe = "int8_ptq",
    *,
    trust_cache: bool = False,
) -> Migration:
    """A float ONNX model with explicit Q/DQ whose ranges are those of a calibration cache.

    Scales of activations are the cache's, bit for bit; where quantizers stand, and the grids of
    weights (per output channel), are the recipe's. A layer whose input has no range stays float.

    Args:
        model: the float ONNX file that the cache was made for.
        cache: a file that TensorRT 8.5 to 10 wrote, or its contents.
        recipe: whose activations are int8, symmetric, per tensor; its calibrator is not used.
        trust_cache: take the cache although the record beside it tells of another one or model.

    Raises:
        ModelFileError: a file cannot be read, or the cache is of another model: by the record
            beside it, or because it has a range for no tensor of this one.
        RecipeError: the recipe's activations have other grids than TensorRT's.
    """
    model, resolved = Path(model), resolve_recipe(recipe)
    _need_int8(resolved)
    if isinstance(cache, CalibrationCache):
        read = cache
    else:
        read = read_cache(Path(cache))
        if not trust_cache:
            require_own(Path(cache), model)
    names = _tensor_names(model)
    if not names & read.bits.keys():
        source = "the cache" if isinstance(cache, CalibrationCache) else cache
        raise ModelFileError(
            f"{source} has ranges for {len(read.bits)} tensors, and {model} has none of them; "
            "give the float ONNX file that it was made for, and a cache that is whole"
        )
    quantized = prepare_onnx(model, resolved)
    unranged: dict[str, tuple[str, ...]] = {}
    while missing := _set_ranges(quantized, read)[1]:
        layers = {tensor: _layers_that_read(quantized, tensor) for tensor in missing}
        unranged |= layers
        reasons = {
            layer: f"the calibration cache has no range for {tensor}"
            for tensor, readers in unranged.items()
            for layer in readers
        }
        before = quantized.plan.tensors
        quantized = prepare_onnx(model, resolved, float_layers=reasons)
        if quantized.plan.tensors == before:
            raise ModelFileError(
                f"the cache has no range for {missing[0]}, and no layer can be left in float for "
                "it; calibrate the model with quantkit quantize"
            )
    taken, _ = _set_ranges(quantized, read)
    round_onnx_weights(quantized)
    absent = tuple(name for name in read.bits if name not in names)
    return Migration(model=quantized, cache=read, taken=taken, absent=absent, unranged=unranged)


def cache_of(
    model: Path | str,
    calibration: Iterable[Any],
    *,
    calibrator: str = "entropy",
    version: int = DEFAULT_VERSION,
    checkpoint: Checkpoint | None = None,
) -> CalibrationCache:
    """A calibration cache with a range for every float tensor of an ONNX file.

    A tensor that holds infinity, as the scores of masked attention do, has none.

    Args:
        model: a float ONNX file: the one that TensorRT is to build.
        calibration: an iterable of input batches.
        calibrator: what finds the ranges. The header is that of TensorRT's entropy calibrator,
            or for ``minmax`` of its min-max calibrator, which is then the one that reads it.
        version: of the TensorRT that is to read it: 101303 is 10.13.3, 8601 is 8.6.1.
        checkpoint: where the statistics are written while they are collected.

    Raises:
        ModelFileError, DataError: as ``quantize_onnx``; or an output holds NaN.
        RecipeError: there is no such calibrator.
    """
    finder = plugins.find("calibrators", calibrator, Calibrator)()
    read, known = read_onnx(model), _tensor_names(Path(model))
    # Reading brings names of its own, which TensorRT would not know.
    observers = {n: o for n, o in observe_all(read.graph, finder).items() if n in known}
    with torch.no_grad():
        collect(OnnxRunner(read, observers), calibration, checkpoint=checkpoint)
    for value in read.graph.outputs:  # a model that computes no numbers has no ranges either
        if value.name in observers and bool(observers[value.name].get_buffer("minimum").isnan()):
            observers[value.name].check()
    seen = {n: o for n, o in observers.items() if _is_finite(o)}
    scales = (qparams.scale for qparams in choose(list(seen.values())))
    bits = {
        name: int(scale.reshape(1).view(torch.int32).item())
        for name, scale in zip(seen, scales, strict=True)
    }
    algorithm = "MinMaxCalibration" if calibrator == "minmax" else "EntropyCalibration2"
    return CalibrationCache(f"TRT-{version}-{algorithm}", bits)


def _is_finite(observer: Observer) -> bool:
    """Whether a tensor was seen and has a range: the scores behind a mask are minus infinity."""
    ends = observer.get_buffer("minimum"), observer.get_buffer("maximum")
    return all(bool(end.isfinite()) for end in ends)


def _need_int8(recipe: Recipe) -> None:
    for scheme in recipe.schemes():
        spec = scheme.activations
        if spec is None or (spec.dtype, spec.symmetric, spec.axis, spec.bits) != (
            "int8", True, None, None,
        ):  # fmt: skip
            raise RecipeError(
                f"recipe {recipe.name}: a calibration cache holds ranges for {_SPEC}, not for "
                f"{'no activations' if spec is None else spec}; use int8_ptq"
            )


def _tensor_names(model: Path) -> set[str]:
    """What the file's author, and TensorRT, call the tensors of a model."""
    graph = read_proto(model).graph
    made = {name for node in graph.node for name in node.output if name}
    return made | {value.name for value in graph.input}


def _set_ranges(
    quantized: QuantizedOnnx, cache: CalibrationCache
) -> tuple[dict[str, str], list[str]]:
    """Gives every grid of an activation its scale; returns where from, and what has none.

    A grid of several tensors (of a concatenation) takes the widest of their ranges.
    """
    taken: dict[str, str] = {}
    missing: list[str] = []
    for grid in quantized.observers:
        sources = {}
        for member in quantized.plan.grids[grid]:
            source = _source(quantized.description.graph, member.tensor, cache)
            if source is None:
                missing.append(member.tensor)
            else:
                sources[member.tensor] = source
        if len(sources) == len(quantized.plan.grids[grid]):
            scale = max(cache.scales[source] for source in sources.values())
            quantized.set_grid(grid, _grid(scale))
            taken |= sources
    return taken, missing


def _grid(scale: float) -> QParams:
    """Of a dead tensor, whose scale is 0, the smallest that there is."""
    step = torch.tensor(scale, dtype=torch.float32).clamp(min=SCALE_FLOOR)
    return QParams(scale=step, zero_point=torch.zeros((), dtype=torch.int32), spec=_SPEC)


def _source(graph: Graph, tensor: str, cache: CalibrationCache) -> str | None:
    """The tensor of the cache whose range holds for this one: itself, or one of its values."""
    name: str | None = tensor
    while name is not None:  # upwards: where the values come from
        if name in cache.bits:
            return name
        producer = graph.producer.get(name)
        moved = producer is not None and producer.kind in _NO_NEW_VALUES and producer.inputs
        name = producer.inputs[0] if producer is not None and moved else None
    waiting = [tensor]
    while waiting:  # downwards: where all of them go
        for reader, index in graph.consumers.get(waiting.pop(), ()):
            if index == 0 and reader.kind in _SAME_VALUES:
                if reader.output in cache.bits:
                    return reader.output
                waiting.append(reader.output)
    return None


def _layers_that_read(quantized: QuantizedOnnx, tensor: str) -> tuple[str, ...]:
    """The layers (and adds) of the plan that read a tensor, past what is no layer."""
    graph, known = quantized.description.graph, {d.op for d in quantized.plan.decisions}
    edges: list[Edge] = [e for t in quantized.plan.tensors if t.tensor == tensor for e in t.edges]
    ops = {op.name: op for op in graph.ops}
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [edge.op for edge in edges]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in known:
            found[name] = None
        else:
            waiting += [reader.name for reader, _ in graph.consumers.get(ops[name].output, ())]
    return tuple(sorted(found, key=lambda op: graph.order[op]))
