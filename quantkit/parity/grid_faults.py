"""Scales and zero-points in a file that are not those of the model it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from quantkit.interfaces import Finding, Severity
from quantkit.model import QuantizedModel
from quantkit.numerics import QParams
from quantkit.onnx.marks import TENSOR
from quantkit.onnx.taps import written

#: Scales are float32, and the file's are the model's own; those that `half` wrote were rounded.
_SAME = 1e-6
_SAME_IN_HALF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def grid_faults(model: ModelProto, folder: Path, simulated: QuantizedModel) -> list[Finding]:
    """Every Q and DQ whose scale or zero-point differs from the grid of its tensor.

    Args:
        model: the file.
        folder: where its external data lies.
        simulated: the model that it was written of.
    """
    grids = {t.tensor: simulated.quantizers[t.grid].qparams for t in simulated.plan.tensors}
    stored = {t.name: t for t in model.graph.initializer}
    found: dict[tuple[str, str], Finding] = {}
    for node in model.graph.node:
        tensor = written(node, TENSOR).partition(" for ")[0]
        if tensor not in grids:
            continue
        for finding in _faults(node, tensor, grids[tensor], stored, folder):
            found.setdefault((finding.code, tensor), finding)
    return list(found.values())


def _faults(
    node: NodeProto, tensor: str, qparams: QParams, stored: dict[str, TensorProto], folder: Path
) -> Iterator[Finding]:
    scale = _value(node, 1, stored, folder)
    zero = _value(node, 2, stored, folder)
    wanted = qparams.scale.detach().cpu().numpy()
    if scale is not None and not _equal(scale, wanted):
        yield _fault("wrong-scale", tensor, node, "scale", _told(scale), _told(wanted))
    if zero is not None and not qparams.spec.is_float:
        # The same grid in the other type of 8 bits is 128 codes away.
        shift = {("uint8", "int8"): 128, ("int8", "uint8"): -128}.get(
            (str(zero.dtype), qparams.spec.dtype), 0
        )
        right = qparams.zero_point.cpu().numpy().astype(np.int64) + shift
        if not np.array_equal(np.sort(zero.astype(np.int64).ravel()), np.sort(right.ravel())):
            yield _fault("wrong-zero-point", tensor, node, "zero-point", _told(zero), _told(right))


def _value(
    node: NodeProto, index: int, stored: dict[str, TensorProto], folder: Path
) -> np.ndarray | None:
    name = node.input[index] if len(node.input) > index else ""
    if name not in stored:
        return None
    return np.asarray(onnx.numpy_helper.to_array(stored[name], base_dir=str(folder)))


def _equal(scale: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether scales are the same; those of groups may be transposed with their weight."""
    if scale.size != wanted.size:
        return False
    sides = (wanted, wanted.T) if wanted.ndim > 1 else (wanted,)
    own, same = scale.astype(np.float64).ravel(), _SAME_IN_HALF.get(str(scale.dtype), _SAME)
    return any(np.allclose(own, side.ravel(), rtol=same, atol=0.0) for side in sides)


def _told(values: np.ndarray) -> str:
    """One number, or the ends of many."""
    if values.size == 1:
        return f"{values.ravel()[0]:.6g}"
    return f"{values.size} from {values.min():.6g} to {values.max():.6g}"


def _fault(code: str, tensor: str, node: NodeProto, what: str, there: str, here: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        code=code,
        where=tensor,
        why=f"Its {what} in {node.op_type} is {there}, and {here} in the model.",
        fix="Export the file again from this model, and let nothing rewrite it after that.",
    )
