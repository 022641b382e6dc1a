"""A candidate as it is deployed: an exported file in ONNX Runtime, called as a module is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from quantkit.errors import DataError
from quantkit.interfaces import ExportForm
from quantkit.onnx.facts import FileFacts
from quantkit.targets.onnxruntime import OnnxRuntime


class Deployed(nn.Module):
    """An ONNX file that takes inputs by order or name, and returns all its outputs.

    Args:
        path: the file.
        form: that it is written in: a file for TensorRT runs in ONNX Runtime's exact mode, where
            sums do not saturate; one for ONNX Runtime as it will run there.
    """

    def __init__(self, path: Path, form: ExportForm) -> None:
        super().__init__()
        self._inputs = FileFacts.of(path).inputs
        self._run = OnnxRuntime(exact=form == "tensorrt").opened(path)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """The file's outputs, in order."""
        given = {**dict(zip(self._inputs, args, strict=False)), **kwargs}
        if len(args) > len(self._inputs) or set(given) != set(self._inputs):
            raise DataError(
                f"the data have the inputs {', '.join(given)}; the file takes "
                f"{', '.join(self._inputs)}; name them alike"
            )
        feed = {name: value.detach().cpu().numpy() for name, value in given.items()}
        return tuple(torch.from_numpy(array.copy()) for array in self._run(feed))
