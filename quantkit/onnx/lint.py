"""What a runtime would refuse, run in float, or run wrongly of a quantized ONNX file.

The file is only read, with no runtime: each rule was found by experiment with TensorRT-RTX's
parser and builder, or measured with ONNX Runtime. What depends on the GPU rather than on the
file (such as convolutions on SM75, which run in float) is for the target to tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import onnx.inliner
from onnx import ModelProto

from quantkit.errors import ModelFileError
from quantkit.interfaces import Finding, Severity
from quantkit.onnx._lint_formats import FORMAT_RULES
from quantkit.onnx._lint_index import GraphIndex, LintTarget, Rule
from quantkit.onnx._lint_layers import LAYER_RULES
from quantkit.onnx._lint_operators import OPERATOR_RULES
from quantkit.onnx._lint_patterns import PATTERN_RULES

#: Every rule; those with ``only`` apply to that target alone.
RULES: Final[tuple[Rule, ...]] = (*FORMAT_RULES, *OPERATOR_RULES, *LAYER_RULES, *PATTERN_RULES)


def lint(model: ModelProto | Path | str, target: LintTarget | None = "tensorrt") -> list[Finding]:
    """Report all that a quantized ONNX file does otherwise than it says.

    Args:
        model: the model, or the path of its file. External weights are not loaded, except the
            small tensors that a rule reads; of a model given by value, those are taken as missing.
        target: whose rules apply; with ``None`` those that hold for every target.

    Returns:
        Findings in graph order; none for a file that runs as it says. What the file contains
        is never an exception.

    Raises:
        ModelFileError: the file is absent or is no ONNX file.

    Example:
        >>> from onnx import TensorProto, helper
        >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
        >>> scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.0])
        >>> zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
        >>> nodes = [
        ...     helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_x"),
        ...     helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dequantize_x"),
        ... ]
        >>> graph = helper.make_graph(nodes, "g", [x], [y], [scale, zero])
        >>> [(f.code, f.where) for f in lint(helper.make_model(graph))]
        [('nonpositive-scale', 'quantize_x')]
    """
    proto, folder = (model, None) if isinstance(model, ModelProto) else _load(Path(model))
    proto, notes = _inline(proto)
    index = GraphIndex(proto, folder)
    placed = [
        (
            hit.order,
            Finding(
                severity=rule.severity, code=rule.code, where=hit.where, why=hit.why, fix=hit.fix
            ),
        )
        for rule in RULES
        if rule.only is None or rule.only == target
        for hit in rule.check(index)
    ]
    return notes + [finding for _, finding in sorted(placed, key=lambda pair: pair[0])]


def _load(path: Path) -> tuple[ModelProto, Path]:
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; export the model first") from error
    except Exception as error:  # protobuf's DecodeError is reachable only by an untyped import
        raise ModelFileError(
            f"{path}: not readable as ONNX ({error}); give an .onnx file"
        ) from error
    if not model.HasField("graph"):
        raise ModelFileError(f"{path}: it holds no graph, so it is no ONNX model; export it again")
    return model, path.parent


def _inline(model: ModelProto) -> tuple[ModelProto, list[Finding]]:
    """The model with its local functions in place, so that rules see what they hold."""
    if not model.functions:
        return model, []
    try:
        return onnx.inliner.inline_local_functions(model), []
    except (ValueError, RuntimeError) as error:
        note = Finding(
            severity=Severity.WARNING,
            code="opaque-functions",
            where=model.functions[0].name,
            why=f"Its functions cannot be inlined ({str(error).splitlines()[0]}); none was linted.",
            fix="Export without model-local functions.",
        )
        return model, [note]
