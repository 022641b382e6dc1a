"""Runs engines of TensorRT and TensorRT-RTX on PyTorch's CUDA tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from quantkit.benching.runner import Opened, ordered

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from quantkit.benching.runner import Inputs
    from quantkit.targets._engine_run import EngineRunner
    from quantkit.targets._shapes import Shapes

#: The name of an engine for shapes, in the folder of its model.
ENGINE: Final = "{}.engine"


class EngineOpened(Opened):
    """An engine that is loaded.

    Args:
        runner: of the engine.
    """

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._batch: dict[str, Tensor] = {}
        self._result: dict[str, Tensor] = {}

    def place(self, inputs: Inputs) -> None:
        """Copy the inputs to the GPU."""
        import torch

        values = ordered(inputs, self._runner.inputs)
        self._batch = {
            name: torch.tensor(value, device="cuda")
            for name, value in zip(self._runner.inputs, values, strict=True)
        }

    def run(self) -> None:
        """Queue the engine's work, and wait for it."""
        import torch

        self._result = self._runner(self._batch)
        torch.cuda.synchronize()

    def outputs(self) -> list[np.ndarray]:
        """In the engine's order, 16-bit floats as 32-bit ones."""
        tensors = self._result.values()
        return [(x.float() if x.is_floating_point() else x).cpu().numpy() for x in tensors]


def exactly(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Shapes to build an engine for that is run with these alone.

    Example:
        >>> exactly({"x": (1, 3)})
        {'x': ((1, 3), (1, 3), (1, 3))}
    """
    return {name: (shape, shape, shape) for name, shape in shapes.items()}


def file_name(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A name for what is built for shapes.

    Example:
        >>> file_name({"x": (1, 3), "y": (1,)})
        '1x3_1.engine'
    """
    return ENGINE.format("_".join("x".join(map(str, shape)) for shape in shapes.values()))
