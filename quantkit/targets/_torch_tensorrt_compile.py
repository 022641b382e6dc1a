"""A quantized model under ``torch.compile(backend="torch_tensorrt")``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quantkit.model import QuantizedModel
from quantkit.targets._torch_tensorrt_program import calibrated, operator_graph
from quantkit.targets._torch_tensorrt_sdk import DEVICE

#: What the backend warns that it ignores, whatever its value.
_IGNORED = "require_full_compilation"


class JustInTime(nn.Module):
    """A copy of a model on the GPU, with quantkit's operator, that is compiled when it is called.

    By itself ``torch.compile`` makes weights and scales inputs of the engine, where TensorRT needs
    them as constants to multiply in few bits. So it is called with ``prepare_freezing``, for which
    there must be no gradient. An engine that cannot be built is an error; by itself PyTorch would
    run the model instead, with a warning at most.

    Args:
        model: calibrated.
        settings: of Torch-TensorRT.
    """

    def __init__(self, model: QuantizedModel, settings: Mapping[str, Any]) -> None:
        super().__init__()
        graph = operator_graph(calibrated(model).graph)
        module = copy.deepcopy(graph).to(DEVICE).requires_grad_(False)
        told = {name: value for name, value in settings.items() if name != _IGNORED}
        self._call = torch.compile(
            module,
            backend="torch_tensorrt",
            fullgraph=True,
            options={**told, "pass_through_build_failures": True},
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these inputs, which must be on the GPU."""
        with torch.no_grad(), torch._dynamo.config.patch(prepare_freezing=True):
            return self._call(*args, **kwargs)
