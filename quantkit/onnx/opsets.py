"""The version of ONNX's operators that a model is written in."""

from __future__ import annotations

import onnx_ir as ir
from onnx import defs

from quantkit.errors import ModelFileError

#: The last in which ONNX Runtime (1.32) moves int8 Q/DQ past a Reshape rightly: from 21 on it
#: writes an ``output_dtype`` of int8 beside a zero-point that it makes uint8, and loads no more.
NEWEST_SAFE = 20
#: Operators of one name whose meaning changed after that.
_CHANGED = frozenset({"GroupNormalization"})


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators that a model imports."""
    return model.graph.opset_imports.get("", 1)


def raise_opset(model: ir.Model, opset: int, name: str = "the model") -> None:
    """Convert in place to ``opset`` or newer; functions of the model are inlined.

    Raises:
        ModelFileError: no converter knows the way; says what to do.
    """
    from onnxscript.version_converter import ConvertVersionPass

    before = opset_of(model)
    if before >= opset:
        return
    reason = "the converter gave up"
    try:
        ConvertVersionPass(target_version=opset, fallback=True)(model)
    except Exception as error:  # the converters raise almost anything
        reason = " ".join(str(error).split())[:200]
    if opset_of(model) < opset:
        raise ModelFileError(
            f"{name}: opset {before} does not convert to {opset}: {reason}; export it again with "
            f"opset {opset} or newer"
        )


def lower_opset(model: ir.Model, opset: int) -> bool:
    """Declare an older opset where every node means the same in it; returns whether it is.

    Most versions only add types, which float models have no use for.

    Example:
        >>> model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
        >>> lower_opset(model, 20), opset_of(model)
        (True, 20)
    """
    if opset_of(model) <= opset:
        return True
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        try:
            schema = defs.get_schema(node.op_type, opset)
        except defs.SchemaError:
            return False
        if node.op_type in _CHANGED or not node.attributes.keys() <= schema.attributes.keys():
            return False
        if len(node.inputs) > schema.max_input:
            return False
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.opset_imports[""] = opset
    return True
