"""What an ONNX file tells of itself: its inputs and outputs, and what quantkit wrote into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from quantkit.errors import ModelFileError
from quantkit.graph.plan import Placement


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What stands in a file beside its weights.

    Attributes:
        recipe: the recipe that made it; ``None`` where quantkit did not write the file.
        plan: what was quantized and why; ``None`` likewise.
        layer_of: the plan's name of the layer that a node computes.
        inputs: the names of its inputs, in order.
        outputs: the names of its outputs, in order.
    """

    recipe: str | None
    plan: Placement | None
    layer_of: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Read them from a file; weights outside it are not loaded.

        Raises:
            ModelFileError: there is no such file, or it is no ONNX file.
        """
        proto = read_proto(path)
        kept = {p.key: p.value for p in proto.metadata_props}
        constants = {tensor.name for tensor in proto.graph.initializer}
        return cls(
            recipe=kept.get("quantkit.recipe"),
            plan=_plan(kept.get("quantkit.plan")),
            layer_of={
                node.name: prop.value
                for node in proto.graph.node
                for prop in node.metadata_props
                if prop.key == "quantkit.layer"
            },
            inputs=tuple(i.name for i in proto.graph.input if i.name not in constants),
            outputs=tuple(o.name for o in proto.graph.output),
        )


def read_proto(path: Path) -> onnx.ModelProto:
    """The file as it stands; weights outside it are not loaded.

    Raises:
        ModelFileError: there is no such file, or it is no ONNX file.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give the path of an ONNX file"
        ) from error
    except DecodeError as error:
        raise ModelFileError(f"{path}: not an ONNX file; export the model first") from error


def _plan(text: str | None) -> Placement | None:
    """The embedded plan; none where another version of quantkit wrote another form."""
    try:
        return None if text is None else Placement.from_json(text)
    except (ValueError, KeyError, TypeError):
        return None


def bytes_on_disk(path: Path) -> int:
    """The size of a file; of an ONNX file, with the files that hold weights of it.

    Raises:
        ModelFileError: it is no ONNX file.
    """
    if path.suffix == ".pt2":
        return path.stat().st_size
    tensors = read_proto(path).graph.initializer
    places = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    return sum(file.stat().st_size for file in (path, *(path.with_name(p) for p in places)))
