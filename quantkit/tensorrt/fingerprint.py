"""What tells one float ONNX model from another: its graph and its weights, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from quantkit.errors import ModelFileError
from quantkit.onnx.facts import read_proto

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """SHA-256 of what a model computes: of its graph, and of its weights.

    Neither depends on where the weights are stored (in the file or beside it), nor on what only
    documents the model (producer, metadata, comments).

    Attributes:
        graph: of the nodes, their names and attributes, and the names and shapes of tensors.
        weights: of the values of all stored tensors.
    """

    graph: str
    weights: str

    @classmethod
    def of(cls, model: Path) -> Fingerprint:
        """The fingerprint of an ONNX file; weights beside it are streamed, never loaded whole.

        Raises:
            ModelFileError: it is not there, it is no ONNX file, or its weights are not there.
        """
        proto = read_proto(model)
        hashed = _Hashed(model.parent)
        for opset in sorted((o.domain, o.version) for o in proto.opset_import):
            hashed.add(opset)
        hashed.add_graph(proto.graph)
        for function in proto.functions:
            hashed.add((function.domain, function.name, *function.input, *function.output))
            hashed.add_nodes(function.node)
        return cls(graph=hashed.graph.hexdigest(), weights=hashed.weights.hexdigest())

    def differences(self, other: Fingerprint) -> list[str]:
        """Which parts differ: ``graph``, ``weights``, both or none."""
        return [
            part for part in ("graph", "weights") if getattr(self, part) != getattr(other, part)
        ]


class _Hashed:
    """The two hashes of one model, while it is walked through."""

    def __init__(self, folder: Path) -> None:
        self.graph = hashlib.sha256()
        self.weights = hashlib.sha256()
        self._folder = folder

    def add(self, parts: Iterable[object]) -> None:
        # repr quotes and escapes: ("a", "b") and ("a, b",) stay two things.
        self.graph.update(repr(tuple(parts)).encode())

    def add_graph(self, graph: GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            self.graph.update(repr(value.name).encode())
            self.graph.update(value.type.SerializeToString(deterministic=True))
        # In any order: exporters and shrinkers move initializers about.
        for tensor in sorted(graph.initializer, key=lambda t: t.name):
            self.add_tensor(tensor)
        for sparse in graph.sparse_initializer:
            self.weights.update(sparse.SerializeToString(deterministic=True))
        self.add_nodes(graph.node)

    def add_nodes(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self.add(("node", node.domain, node.op_type, node.name, len(node.input)))
            self.add((*node.input, *node.output))
            for attribute in sorted(node.attribute, key=lambda a: a.name):
                self.add((attribute.name, attribute.type))
                tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
                graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                for tensor in tensors:
                    self.add_tensor(tensor)
                for graph in graphs:
                    self.add_graph(graph)
                if not tensors and not graphs:
                    self.graph.update(attribute.SerializeToString(deterministic=True))

    def add_tensor(self, tensor: TensorProto) -> None:
        self.add((tensor.name, tensor.data_type, *tensor.dims))
        self.weights.update(repr(tensor.name).encode())
        if tensor.data_location == TensorProto.EXTERNAL:
            for chunk in _external(tensor, self._folder):
                self.weights.update(chunk)
        elif tensor.data_type == TensorProto.STRING:
            self.add(tensor.string_data)
        elif tensor.HasField("raw_data"):
            self.weights.update(tensor.raw_data)
        else:
            self.weights.update(_raw(tensor))


def _raw(tensor: TensorProto) -> bytes:
    """The bytes that ``raw_data`` would hold of a tensor that is written as numbers."""
    values = onnx.numpy_helper.to_array(tensor)
    return onnx.numpy_helper.from_array(values).raw_data


def _external(tensor: TensorProto, folder: Path) -> Iterator[bytes]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = folder / entries.get("location", "")
    offset, length = int(entries.get("offset", 0)), entries.get("length")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            left = path.stat().st_size - offset if length is None else int(length)
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); it holds the weights of {tensor.name}: "
            "keep it beside the ONNX file"
        ) from error
    if left > 0:
        raise ModelFileError(
            f"{path}: ends {left} bytes before the weights of {tensor.name} do; copy it whole"
        )
