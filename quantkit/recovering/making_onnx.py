"""Builds candidates of a float ONNX file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from quantkit.calibrating import Checkpoint
from quantkit.errors import DataError
from quantkit.graph.abstract import Graph
from quantkit.model_calibration import known_calibrators, read_by
from quantkit.onnx.describing import describe_onnx
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.onnx.reading import read_onnx
from quantkit.recipe import Recipe
from quantkit.recovering.deployed import Deployed
from quantkit.recovering.goal import Deadline
from quantkit.recovering.making import Built, Maker, Timed
from quantkit.recovering.steps import Candidate, Facts
from quantkit.workflow_onnx import calibrate_onnx, prepare_onnx, round_onnx_weights


@dataclass(frozen=True, kw_only=True)
class OnnxMaker(Maker):
    """Of a float ONNX file; candidates are judged as they are deployed.

    Attributes:
        model: the file.
    """

    model: Path

    @cached_property
    def floating(self) -> nn.Module:
        """The file in ONNX Runtime."""
        return Deployed(self.model, "onnxruntime")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the file, and of its weights where they are beside it."""
        digest = hashlib.sha256(self.model.read_bytes())
        beside = self.model.with_name(f"{self.model.name}.data")
        if beside.exists():
            digest.update(beside.read_bytes())
        return digest.hexdigest()

    @cached_property
    def graph(self) -> Graph:
        """The operators of the file."""
        return describe_onnx(read_onnx(self.model).graph).graph

    def facts(self, recipe: Recipe) -> Facts:
        """What is known without running anything."""
        return replace(super().facts(recipe), onnx=True)

    def build(self, candidate: Candidate, deadline: Deadline) -> QuantizedOnnx:
        """As ``quantize_onnx`` would; data are run once for all calibrators."""
        qmodel = prepare_onnx(self.model, candidate.recipe)
        if qmodel.observers:
            data, path = Timed(self.calibration, deadline), self._statistics(candidate.recipe)
            if path.exists():
                calibrate_onnx(qmodel, data, statistics=(path,))
            else:
                every = read_by(known_calibrators(qmodel.observers.values()))
                calibrate_onnx(qmodel, data, checkpoint=Checkpoint(path=path), keep=every)
        round_onnx_weights(qmodel)
        return qmodel

    def runnable(self, built: Built) -> nn.Module:
        """The exported file."""
        return self.exported(built)

    def ranking(self, recipe: Recipe, deadline: Deadline) -> tuple[tuple[str, ...], ...]:
        """None: sensitivities are measured on the PyTorch model.

        Raises:
            DataError: always.
        """
        raise DataError(
            "the layers of an ONNX file are not ranked; give the PyTorch model that it was made of"
        )
