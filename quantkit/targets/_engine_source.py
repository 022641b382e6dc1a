"""An ONNX file as an engine builder gets it: every node with a name of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs
from onnx import ModelProto

from quantkit.errors import ModelFileError
from quantkit.interfaces import Finding
from quantkit.targets import _rtx_findings, _rtx_graph
from quantkit.targets._rtx_graph import GraphReader


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        path: of the file; what it stores outside lies beside it.
        reader: of its graph, with the names that the builder gets.
        renamed: the model with every node named, where the file has nameless or equal ones.
    """

    path: Path
    reader: GraphReader
    renamed: ModelProto | None

    @property
    def has_qdq(self) -> bool:
        """Whether the file says itself what is quantized."""
        kinds = ("QuantizeLinear", "DequantizeLinear")
        return any(node.op_type in kinds for node in self.reader.nodes)

    @contextmanager
    def named(self) -> Iterator[Path | None]:
        """A file of ``renamed``, while it is needed; ``None`` where the file itself will do."""
        if self.renamed is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / "named.onnx"
            named.write_bytes(self.renamed.SerializeToString())
            yield named


def read_source(model: Path) -> Source | Finding:
    """The file, or why it cannot be read.

    Raises:
        ModelFileError: there is no such file.
    """
    if not model.is_file():
        raise ModelFileError(f"no ONNX file {model}; export one with quantkit.export_onnx")
    try:
        proto, changed = _rtx_graph.load(model)
    except DecodeError as error:
        return _rtx_findings.unreadable(model, str(error))
    return Source(model, GraphReader(proto), proto if changed else None)
