"""PyTorch's standard operators for Q/DQ, ``torch.ops.quantized_decomposed``.

Importing this module registers them; a program that holds them can be read only after that. They
mean what `quantkit.numerics` means: a quotient is a product with the reciprocal, rounded half to
even, and scales that are Python floats are rounded to float32 before use.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import fx

from quantkit.errors import MissingDependencyError

try:
    # torch registers them where its own quantization lived, and nowhere else.
    import torch.ao.quantization.fx._decomposed
except ImportError:  # moved to torchao, as announced
    try:
        importlib.import_module("torchao.quantization.pt2e")
    except ImportError as error:
        raise MissingDependencyError(
            "this version of PyTorch has no operators for Q/DQ; run `pip install torchao`"
        ) from error

_ops = torch.ops.quantized_decomposed

QUANTIZE_TENSOR = _ops.quantize_per_tensor.default
DEQUANTIZE_TENSOR = _ops.dequantize_per_tensor.default
QUANTIZE_CHANNEL = _ops.quantize_per_channel.default
DEQUANTIZE_CHANNEL = _ops.dequantize_per_channel.default
DEQUANTIZE_GROUP = _ops.dequantize_per_channel_group.default


def is_dequantize(node: Any) -> bool:
    """Whether a node makes floats of integers."""
    return isinstance(node, fx.Node) and node.target in {
        DEQUANTIZE_TENSOR,
        DEQUANTIZE_CHANNEL,
        DEQUANTIZE_GROUP,
    }
