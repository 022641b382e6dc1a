"""Observe the tensors of a float ONNX model while ONNX Runtime runs it, a few samples at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantkit import batches, statistics_file
from quantkit.batches import Call
from quantkit.calibrating import SAMPLES_AT_A_TIME, Runner
from quantkit.errors import DataError, MissingDependencyError, ModelFileError
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer
from quantkit.onnx.reading import save
from quantkit.spec import QuantSpec


class OnnxRunner(Runner):
    """A float model whose tensors go to observers, and are dropped at once.

    The file that runs is a copy whose outputs are the observed tensors: ONNX Runtime may fuse what
    is between them, so they are those of the float model to float error. ``model`` may be changed
    or dropped afterwards.

    Args:
        model: what ``read_onnx`` returned, or what became of it.
        tensors: the observer of each tensor, by its name in the file; several may share one.
        named: the observers by the names that statistics have for them; by default ``tensors``.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelFileError: ONNX Runtime cannot run the model.
    """

    def __init__(
        self,
        model: ir.Model,
        tensors: Mapping[str, Observer],
        named: Mapping[str, Observer] | None = None,
    ) -> None:
        self._named = dict(tensors if named is None else named)
        self._examples, self._dynamic = _examples(model.graph)
        self._fed = {n: o for n, o in tensors.items() if n in self._examples}
        self._computed = {n: o for n, o in tensors.items() if n not in self._examples}
        self._fingerprint = statistics_file.fingerprint(_constants(model.graph))
        self._session = _session(model, list(self._computed)) if self._computed else None

    @property
    def observers(self) -> Mapping[str, Observer]:
        """The observers by the names that statistics have for them."""
        return self._named

    @property
    def fingerprint(self) -> str:
        """A hash of the float model's constants."""
        return self._fingerprint

    @property
    def samples(self) -> int:
        """How many samples run at a time: a few, or those that the file is made for."""
        fixed = {e.shape[0] for n, e in self._examples.items()
                 if e.dim() and 0 not in self._dynamic[n]}  # fmt: skip
        return SAMPLES_AT_A_TIME if self._batched or not fixed else max(fixed)

    @property
    def _batched(self) -> frozenset[str]:
        return frozenset(name for name, dims in self._dynamic.items() if 0 in dims)

    def calls(self, batched: Iterable[Call], first: int = 0) -> Iterator[Call]:
        """Checked calls, with every input under its name in the file.

        Raises:
            DataError: a batch is not of the form that the file takes.
        """
        checked = self._checked(batched, first)
        if self._batched:
            return batches.regroup(checked, SAMPLES_AT_A_TIME, self._batched)
        alike = {n for n, e in self._examples.items() if e.dim() and e.shape[0] == self.samples}
        return self._whole(batches.regroup(checked, self.samples, alike))

    def run(self, call: Call) -> None:
        """Let the observers see the tensors of one call."""
        self({name: value.numpy() for name, value in call[1].items()})

    def __call__(self, feed: Mapping[str, np.ndarray]) -> None:
        """Run one batch of named inputs; its tensors are gone afterwards.

        Raises:
            DataError: ONNX Runtime cannot run the batch.
        """
        for name, observer in self._fed.items():
            observer(torch.from_numpy(feed[name]))
        if self._session is None:
            return
        names = list(self._computed)
        try:
            results = self._session.run(names, dict(feed))
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            raise DataError(
                f"ONNX Runtime cannot run the model on {shapes}: "
                f"{' '.join(str(error).split())[:300]}; check the data against what the model takes"
            ) from error
        for name in reversed(names):
            # Taken off the list, so that no tensor outlives its observer's look at it.
            self._computed[name](torch.from_numpy(results.pop()))

    def _checked(self, calls: Iterable[Call], first: int) -> Iterator[Call]:
        names = list(self._examples)
        dims = frozenset().union(*self._dynamic.values())
        for index, call in enumerate(calls, start=first):
            args, named = call
            if len(args) > len(names):
                raise DataError(
                    f"batch {index} has {len(args)} inputs, the model takes {len(names)}: "
                    f"{', '.join(names)}; leave the labels out"
                )
            given = {**dict(zip(names, args, strict=False)), **named}
            ordered = {n: given[n] for n in names if n in given} | given
            examples = self._fitted(ordered)
            batches.check_batch((), ordered, (), examples, index, dynamic_dims=dims)
            yield (), {n: x.contiguous() for n, x in ordered.items()}

    def _fitted(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Examples with the batch's own count of samples where the file fixes it.

        Batches are regrouped, so they need not have the file's count themselves.
        """
        if self._batched:
            return self._examples
        examples = dict(self._examples)
        for name, example in self._examples.items():
            value = given.get(name)
            if value is not None and value.dim() and example.dim():
                examples[name] = example.new_empty((value.shape[0], *example.shape[1:]))
        return examples

    def _whole(self, calls: Iterable[Call]) -> Iterator[Call]:
        for args, named in calls:
            for name, value in named.items():
                if value.dim() and value.shape[0] != self._examples[name].shape[0]:
                    raise DataError(
                        f"{value.shape[0]} samples are left over, and the file takes "
                        f"{self._examples[name].shape[0]} at a time ({name}); give a multiple of "
                        "that, or export the model with a dynamic batch"
                    )
            yield args, named


def floating_tensors(graph: ir.Graph) -> tuple[str, ...]:
    """The names of every tensor that is computed or fed in float32, in the graph's order."""
    made = (out for node in graph for out in node.outputs)
    return tuple(
        str(v.name) for v in (*graph.inputs, *made) if v.name and v.dtype is ir.DataType.FLOAT
    )


def observe_all(graph: ir.Graph, calibrator: Calibrator) -> dict[str, Observer]:
    """A per-tensor int8 observer for every float tensor, as TensorRT's calibration caches want.

    Example:
        >>> from quantkit.calibrators.minmax import MinMax
        >>> observe_all(ir.Graph([], [], nodes=[]), MinMax())
        {}
    """
    return {name: Observer(QuantSpec(), calibrator, name=name) for name in floating_tensors(graph)}


def _examples(graph: ir.Graph) -> tuple[dict[str, Tensor], dict[str, frozenset[int]]]:
    """A tensor without data like each input, and the dimensions that may differ from it."""
    examples: dict[str, Tensor] = {}
    dynamic: dict[str, frozenset[int]] = {}
    for value in graph.inputs:
        if value.shape is None or value.dtype is None:
            raise ModelFileError(
                f"the input {value.name} has no shape or type in the file; export it with both"
            )
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        dtype = torch.from_numpy(np.zeros(0, dtype=value.dtype.numpy())).dtype
        examples[str(value.name)] = torch.empty(shape, dtype=dtype, device="meta")
        open_dims = (i for i, size in enumerate(value.shape) if not isinstance(size, int))
        dynamic[str(value.name)] = frozenset(open_dims)
    return examples, dynamic


def _constants(graph: ir.Graph) -> Iterator[tuple[str, Tensor]]:
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.numpy().kind in "biuf":
            yield name, torch.from_numpy(np.array(tensor.numpy()))


def _session(model: ir.Model, outputs: list[str]) -> Any:
    """ONNX Runtime on a copy of the model that puts out these tensors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "an ONNX model is calibrated by ONNX Runtime, which is not installed; run "
            "`pip install onnxruntime`"
        ) from error
    copy = model.clone()
    made = {out.name: out for node in copy.graph for out in node.outputs}
    copy.graph.outputs[:] = [made[name] for name in outputs]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    # Else its arena keeps the most that a batch has needed, beside what the outputs need.
    options.enable_cpu_mem_arena = False
    # Else its threads wait for the next run in a loop, and take the cores that observers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save(copy, path)
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise ModelFileError(
                f"ONNX Runtime cannot run the model: {' '.join(str(error).split())[:300]}; "
                "check the file with onnx.checker"
            ) from error
