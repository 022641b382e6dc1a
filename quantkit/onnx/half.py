"""Convert the float part of an ONNX file to float16 or bfloat16, with its numbers checked.

TensorRT 11 and TensorRT-RTX run every layer in the type that the file gives it: what a file leaves
in float32 stays there. Scales of Q/DQ remain float32 as they are, so every grid is kept bit for
bit, and integers are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantkit.errors import DataError, ExportError, ModelFileError
from quantkit.interfaces import Finding
from quantkit.onnx import _half_findings as findings
from quantkit.onnx._half_findings import Compared
from quantkit.onnx._half_format import FORMATS, HalfFormat
from quantkit.onnx._half_format import Precision as Precision
from quantkit.onnx._half_graph import is_float
from quantkit.onnx._half_masks import clamp
from quantkit.onnx._half_plan import GRIDS, HalfPlan, plan
from quantkit.onnx._half_reading import raise_for, read, write
from quantkit.onnx._half_rewrite import rewrite
from quantkit.onnx._half_running import Feed, Peaks, compare, feeds, open_file, rounded, session
from quantkit.onnx.opsets import opset_of
from quantkit.onnx.parity import OutputParity
from quantkit.progress import track

#: So many samples of the data are kept, to compare both files on; ranges are those of all.
COMPARED = 64


@dataclass(frozen=True, kw_only=True)
class KeptNode:
    """A node that stays in float32.

    Attributes:
        node: its name.
        op_type: its operator.
        reason: why, in words.
    """

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class HalfReport:
    """What became of a float file.

    Attributes:
        precision: the format of what was converted.
        output: the file written.
        opset: of that file.
        converted: how many nodes compute in half.
        kept: those that stay in float32; TensorRT fuses them, but for products.
        casts: how many Casts stand between the two, and at the borders of the model.
        weights: how many constants became half.
        clamped: how many masks and bounds were brought into range.
        zeroed: how many numbers of constants half rounds to 0.
        subnormal: how many it holds without a full mantissa.
        parity: the outputs beside those of the file converted, or of the reference where one was
            given; empty where no data were.
        before: the outputs of the file converted beside the reference's; else empty.
        samples: how many samples both are of.
        findings: what is worth knowing, or wrong.
    """

    precision: Precision
    output: Path
    opset: int
    converted: int
    kept: tuple[KeptNode, ...]
    casts: int
    weights: int
    clamped: int
    zeroed: int
    subnormal: int
    parity: tuple[OutputParity, ...]
    before: tuple[OutputParity, ...]
    samples: int
    findings: tuple[Finding, ...]


def to_half(
    model: Path | str,
    output: Path | str,
    *,
    precision: Precision = "float16",
    data: Iterable[Any] | None = None,
    reference: Path | str | None = None,
    keep_io: bool = True,
    keep: Sequence[str] = (),
) -> HalfReport:
    """Write a float or Q/DQ file with its float part in half.

    Integer weights, scales and zero-points stay as they are. What half would not compute rightly
    stays in float32, each node with its reason in the report; so does the file's metadata.

    Args:
        model: an ONNX file in float32, quantized or not.
        output: the file to write; it may be ``model`` itself.
        precision: ``float16``, or ``bfloat16``, which has the range of float32 and fewer digits.
        data: batches of inputs: tensors that leave the range of half are found on all of them, and
            the outputs of both files are compared on the first 64 samples.
        reference: the float file that a Q/DQ file was made of, to compare both with. Beside itself
            a Q/DQ file looks worse than it is: where half moves a value to the next code, it is
            off by a whole step, though no less right.
        keep_io: inputs and outputs stay float32, with one Cast each; else they become half.
        keep: patterns of names of nodes that are to stay in float32, such as ``decoder/*``.

    Raises:
        ModelFileError: the model cannot be read, or converted to an opset that has what is needed.
        DataError: the data do not fit the model, or hold NaN or infinity.
        ExportError: ``precision`` is unknown, or the output cannot be written.

    Example:
        >>> import tempfile
        >>> x = ir.val("x", ir.DataType.FLOAT, ["N", 32])
        >>> w = ir.val("w", const_value=ir.tensor([[0.5] * 16] * 32, name="w"))
        >>> node = ir.node("MatMul", [x, w], name="fc")
        >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], name="small",
        ...                  opset_imports={"": 18})
        >>> folder = Path(tempfile.mkdtemp())
        >>> ir.save(ir.Model(graph, ir_version=10), folder / "float.onnx")
        >>> report = to_half(folder / "float.onnx", folder / "half.onnx")
        >>> report.converted, report.casts, report.kept
        (1, 2, ())
    """
    if precision not in FORMATS:
        raise ExportError(f"no precision {precision!r}; there are: {', '.join(FORMATS)}")
    half, path, target = FORMATS[precision], Path(model), Path(output)
    converted = read(path)
    clamped = clamp(converted.graph, half)
    peaks, sample = _observed(converted, data)
    raise_for(converted, half, str(path))
    decided = plan(converted, half, keep=keep, peaks=peaks)
    told = _kept(decided)
    touched = _computing(converted, decided)
    numbers = rewrite(converted, decided, keep_io=keep_io)
    converted.metadata_props["quantkit.precision"] = precision
    compared = _compared(
        path, None if reference is None else Path(reference), converted, half, sample
    )
    write(converted, target)
    return HalfReport(
        precision=precision, output=target, opset=opset_of(converted), converted=touched,
        kept=told, casts=numbers.casts, weights=numbers.weights, clamped=clamped,
        zeroed=numbers.zeroed, subnormal=numbers.subnormal, parity=compared.parity,
        before=compared.before, samples=sum(map(_rows, sample)) if compared.parity else 0,
        findings=findings.of(decided, compared, path, seen=data is not None),
    )  # fmt: skip


def half_copy(
    model: Path, folder: Path, precision: Precision, data: Iterable[Any] | None = None
) -> Path:
    """A file of a name of its own in ``folder``, with the float part of ``model`` in half.

    Raises:
        ModelFileError, DataError, ExportError: as `to_half`.
    """
    path = folder / f"{model.stem}.{precision}.onnx"
    to_half(model, path, precision=precision, data=data)
    return path


def _observed(
    model: ir.Model, data: Iterable[Any] | None
) -> tuple[Mapping[str, float], tuple[Feed, ...]]:
    """The largest magnitude of each tensor on all data, and the first samples of it."""
    if data is None:
        return {}, ()
    peaks, sample, rows = Peaks(model), [], 0
    for feed in feeds(track(data, "looking for ranges"), model.graph):
        peaks.update(feed)
        if rows < COMPARED:
            sample.append(feed)
            rows += _rows(feed)
    return peaks.found, tuple(sample)


def _rows(feed: Feed) -> int:
    return max((value.shape[0] for value in feed.values() if value.ndim), default=1)


def _compared(
    path: Path,
    reference: Path | None,
    converted: ir.Model,
    half: HalfFormat,
    sample: Sequence[Feed],
) -> Compared:
    """How far outputs are apart, or why that is not known."""
    quantized = any(node.op_type == "QuantizeLinear" for node in converted.graph.all_nodes())
    told = Compared(quantized=quantized and reference is None)
    if not sample:
        return told
    try:
        first = open_file(path if reference is None else reference)
        return replace(
            told,
            parity=compare(first, session(rounded(converted, half)), sample),
            before=() if reference is None else compare(first, open_file(path), sample),
        )
    except (DataError, ModelFileError) as error:
        return replace(told, unmeasured=str(error))


def _kept(decided: HalfPlan) -> tuple[KeptNode, ...]:
    return tuple(
        KeptNode(node=node.name or "", op_type=node.op_type, reason=reason.text)
        for node, reason in decided.kept.items()
    )


def _computing(model: ir.Model, decided: HalfPlan) -> int:
    """How many nodes make float32 now, and will make half."""
    return sum(
        node not in decided.kept
        and node.op_type not in GRIDS | {"Cast"}
        and any(is_float(value) for value in node.outputs)
        for node in model.graph.all_nodes()
    )
