"""The precisions of one model, as the files that runners read, each written when it is wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

import torch

from quantkit.benching.runner import Precision
from quantkit.errors import QuantkitError
from quantkit.interfaces import ExportForm, ModelFormat
from quantkit.model import QuantizedModel
from quantkit.onnx.export import LARGEST_FILE, quiet_exporter
from quantkit.onnx.quantized import QuantizedOnnx

#: The opset of float files: that of quantized ones.
_OPSET: Final = 18


class UnfitError(Exception):
    """There is no file of this precision for a runner; the message says why."""


class Variant(ABC):
    """One precision of the model.

    Attributes:
        precision: what a runner has to know of it.
    """

    precision: Precision

    @property
    @abstractmethod
    def formats(self) -> frozenset[ModelFormat]:
        """The formats that there are files of."""

    @abstractmethod
    def file(self, reads: ModelFormat, form: ExportForm, *, half: bool) -> Path:
        """The file of a format, with Q/DQ in a form.

        Args:
            reads: one of the formats.
            form: of Q/DQ, in ONNX.
            half: put the float part of an ONNX file that has Q/DQ in float16.

        Raises:
            UnfitError: there is none, or it cannot be written.
        """


class GivenFile(Variant):
    """A file of the user's, as it is.

    Args:
        path: ``.onnx`` or ``.pt2``.
        name: what it is called in the table.
        quantized: whether Q/DQ stands in it.
    """

    def __init__(self, path: Path, name: str, quantized: bool) -> None:
        self._path = path
        self.precision = Precision(name=name, quantized=quantized)

    def file(self, reads: ModelFormat, form: ExportForm, *, half: bool) -> Path:
        """The file."""
        return self._path

    @property
    def formats(self) -> frozenset[ModelFormat]:
        """That of the file."""
        return frozenset({"onnx"} if self._path.suffix == ".onnx" else {"pt2"})


class FloatProgram(Variant):
    """The float model of PyTorch.

    Args:
        program: of ``torch.export``.
        folder: where files go.
    """

    def __init__(self, program: torch.export.ExportedProgram, folder: Path) -> None:
        self._program, self._folder = program, folder
        self.precision = Precision(name="float", quantized=False)

    @property
    def formats(self) -> frozenset[ModelFormat]:
        """Both."""
        return frozenset({"onnx", "pt2"})

    def file(self, reads: ModelFormat, form: ExportForm, *, half: bool) -> Path:
        """The program, or ONNX of it."""
        path = self._folder / f"float.{reads}"
        if path.exists():
            return path
        if reads == "pt2":
            torch.export.save(self._program, path)
        else:
            _export_float(self._program, path)
        return path


class Quantized(Variant):
    """The model as a recipe made it.

    Args:
        model: calibrated, its weights rounded.
        folder: where files go; no other's.
    """

    def __init__(self, model: QuantizedModel | QuantizedOnnx, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.precision = Precision(
            name=model.recipe.name, quantized=True, schemes=tuple(model.recipe.schemes())
        )

    @property
    def formats(self) -> frozenset[ModelFormat]:
        """Both, if it is one of PyTorch."""
        return frozenset({"onnx"} if isinstance(self._model, QuantizedOnnx) else {"onnx", "pt2"})

    def file(self, reads: ModelFormat, form: ExportForm, *, half: bool) -> Path:
        """Q/DQ in ONNX, or in a program."""
        path = self._folder / f"{form}.{reads}"
        try:
            if not path.exists():
                self._write(path, form)
            return _half(path) if half and reads == "onnx" else path
        except QuantkitError as error:
            raise UnfitError(str(error)) from error

    def _write(self, path: Path, form: ExportForm) -> None:
        from quantkit.onnx.export import export_onnx
        from quantkit.program.writing import export_pt2

        if path.suffix == ".onnx":
            export_onnx(self._model, path, form=form)
        elif isinstance(self._model, QuantizedModel):
            export_pt2(self._model, path, form=form)


class Half(Variant):
    """The float model in float16, for GPUs.

    Args:
        model: in float32; of a program the runner is told to compute in float16.
        folder: where files go.
    """

    def __init__(self, model: Variant, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.precision = Precision(name="float16", quantized=False, half=True)

    @property
    def formats(self) -> frozenset[ModelFormat]:
        """Those of the model in float32."""
        return self._model.formats

    def file(self, reads: ModelFormat, form: ExportForm, *, half: bool) -> Path:
        """The program as it is, or ONNX in float16."""
        path = self._model.file(reads, form, half=False)
        try:
            return _half(path, self._folder) if reads == "onnx" else path
        except QuantkitError as error:
            raise UnfitError(str(error)) from error


def _half(path: Path, folder: Path | None = None) -> Path:
    """A copy of an ONNX file with its float part in float16, made once."""
    from quantkit.onnx.half import to_half

    copy = (folder or path.parent) / f"{path.stem}.float16.onnx"
    if not copy.exists():
        to_half(path, copy)
    return copy


def holds_qdq(path: Path) -> bool:
    """Whether a file is quantized already.

    Raises:
        ModelFileError: it cannot be read.
    """
    if path.suffix == ".pt2":
        from quantkit.program.archive import read_archive
        from quantkit.program.reading import is_quantized

        return is_quantized(read_archive(path))
    from quantkit.onnx.facts import read_proto

    kinds = {node.op_type for node in read_proto(path).graph.node}
    return any(kind.startswith(("DequantizeLinear", "QLinear", "MatMulInteger")) for kind in kinds)


def _export_float(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        with quiet_exporter():
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=_OPSET, verbose=False
            )
    except Exception as error:  # the exporter raises almost anything on what it does not know
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join(str(cause).split())[:200]
        raise UnfitError(f"the float model has no ONNX form: {why}") from error
    assert exported is not None
    size = sum(x.nbytes for x in program.state_dict.values())
    exported.save(path, external_data=size > LARGEST_FILE)
