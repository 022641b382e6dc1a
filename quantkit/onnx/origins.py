"""Where a node came from: the module's path that an exporter left in the file."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import onnx_ir as ir

from quantkit.graph.abstract import COMPUTE, Kind
from quantkit.graph.aten import KINDS, is_layer


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A node's module, and its operator's name in PyTorch.

    Attributes:
        path: such as ``layer1.0.conv1``, empty for the model's own; ``None`` where the file
            tells none.
        operator: such as ``conv2d``; the ONNX operator in small letters where it tells none.
        leaf: the module is the layer itself.
    """

    path: str | None
    operator: str
    leaf: bool


def origin_of(node: ir.Node, kind: Kind) -> Origin:
    """What a file tells of a node: the dynamo exporter's notes, else names of the older one."""
    small = node.op_type.lower()
    scopes = _notes(node, "pkg.torch.onnx.name_scopes")
    layer = kind in COMPUTE and kind is not Kind.MATMUL
    if len(scopes) > 1:
        classes = _notes(node, "pkg.torch.onnx.class_hierarchy")
        parts = classes[-1].split(".") if classes else []
        aten = parts[1].rstrip("_") if len(parts) > 1 and parts[0] == "aten" else ""
        owner = classes[-2] if len(classes) > 1 else "torch.nn.modules"
        known = KINDS.get(aten)
        # A convolution that the exporter fused with a batch-norm has the batch-norm's notes.
        path = (_module_of_parameter(node) if layer and known is not kind else "") or scopes[-2]
        operator = aten if known is kind else small
        return Origin(path=path, operator=operator, leaf=layer and is_layer(owner))
    path = module_of_name(node.name or "", node.op_type)
    if not path and layer:
        path = _module_of_parameter(node)
    return Origin(path=path or None, operator=small, leaf=layer)


def module_of_name(name: str, op_type: str) -> str:
    """The module in a node's name as PyTorch's older exporter writes it; empty in other names.

    Example:
        >>> module_of_name("/layer1/layer1.0/conv1/Conv", "Conv")
        'layer1.0.conv1'
        >>> module_of_name("/encoder/layer.0/attention/self/query/MatMul_1", "MatMul")
        'encoder.layer.0.attention.self.query'
        >>> module_of_name("Conv_12", "Conv")
        ''
    """
    parts = name.split("/")
    if (
        len(parts) < 3
        or parts[0]
        or parts[-1].rstrip("0123456789_") != op_type.rstrip("0123456789_")
    ):
        return ""
    path: list[str] = []
    for part in parts[1:-1]:
        # A Sequential's child is called by its parent's name and its own.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _module_of_parameter(node: ir.Node) -> str:
    """The module that a layer's weight or bias is called after."""
    for value in node.inputs[1:3]:
        name = value.name if value is not None and value.is_initializer() else None
        path, _, last = (name or "").rpartition(".")
        if path and last in {"weight", "bias"} and "::" not in path:
            return path
    return ""


def _notes(node: ir.Node, key: str) -> list[str]:
    try:
        found = ast.literal_eval(node.metadata_props.get(key, "[]"))
    except (ValueError, SyntaxError):
        return []
    return [str(part) for part in found] if isinstance(found, list) else []
