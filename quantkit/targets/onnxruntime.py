"""ONNX Runtime on the CPU: which layers it runs in integers, its results and its speed."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.hardware import named_cpu, weight_bits
from quantkit.interfaces import ExportForm, Finding, Inspection, ModelFormat, Severity, Target
from quantkit.spec import Scheme
from quantkit.targets._onnxruntime_findings import coverage, findings, refused
from quantkit.targets._onnxruntime_graph import Wiring, label, layers

if TYPE_CHECKING:
    import numpy as np

Feed = Mapping[str, "np.ndarray"]

#: Only what ends the process is logged: all else is raised, and told in an error or a finding.
_FATAL = 4


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Target):
    """ONNX Runtime with its CPU execution provider.

    Attributes:
        exact: compute what the file says, slower: sum 8-bit products without saturation on x86
            processors that have no VNNI (the session option ``session.x64quantprecision``), and
            leave activations in float where only the weight is quantized (by default
            ``MatMulNBits`` rounds them to 8 bits in blocks).
        threads: how many threads one model may use; ``None`` lets ONNX Runtime choose.
        cpu: the kind of processor it will be deployed on, see ``quantkit.hardware.named_cpu``.

    Example:
        >>> OnnxRuntime(exact=True).form
        'onnxruntime'
    """

    exact: bool = False
    threads: int | None = None
    cpu: str = "auto"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}; or leave it out")
        named_cpu(self.cpu)

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """Q/DQ as its x86 kernels run them fastest: uint8 activations."""
        return "onnxruntime"

    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What it cannot run of these schemes, or runs in float or wrongly."""
        saturates = not self.exact and weight_bits(named_cpu(self.cpu)) < 8
        said = [f for scheme in schemes for f in refused(scheme, saturates=saturates)]
        return list(dict.fromkeys(said))

    def inspect(self, model: Path) -> Inspection:
        """Read from the graph that ONNX Runtime makes of a file how each layer would run.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ModelFileError: the file is not there, or is no ONNX file.
        """
        ort = _import()
        proto = _load(model)
        cpu = named_cpu(self.cpu)
        exact = ", exact" if self.exact else ""
        name = f"onnxruntime {ort.__version__} ({cpu.name}{exact})"
        labels = label(proto)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
            try:
                optimized = self._optimize(proto, model.parent, Path(folder) / "optimized.onnx")
            except TargetError as error:
                return Inspection(target=name, findings=(_does_not_load(model, str(error)),))
        seconds = time.perf_counter() - start
        wiring = Wiring(proto, model.parent)
        found = layers(wiring, labels, optimized)
        saturates = not self.exact and weight_bits(cpu) < 8
        return Inspection(
            target=name,
            layers=coverage(wiring, found),
            findings=tuple(findings(wiring, found, saturates=saturates)),
            seconds=seconds,
        )

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the graph as ONNX Runtime optimizes it: integer kernels chosen, quick to load.

        The file needs ONNX Runtime (it holds operators of its own), of the version that wrote it
        or later. Layouts that suit this processor alone are chosen when it is loaded. Load it with
        the same options: ``exact`` is one of the session, not of the file.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ModelFileError: the model is not there, or is no ONNX file.
            TargetError: it does not load, would give wrong results, or cannot be written.
        """
        inspection = self.inspect(model)
        errors = [f for f in inspection.findings if f.severity is Severity.ERROR]
        if errors:
            raise TargetError(f"{model.name} cannot be built for ONNX Runtime: {errors[0]}")
        try:
            # In the folder of the output: only within one file system is a rename atomic.
            with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=output.parent) as folder:
                self._optimize(_load(model), model.parent, Path(folder) / output.name, basic=True)
                # External data first: the model file makes the whole valid.
                for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == output.name):
                    os.replace(file, output.parent / file.name)
        except OSError as error:
            raise TargetError(
                f"{output} cannot be written: {error.strerror}; choose another --output"
            ) from error
        return inspection

    def run(self, model: Path, batches: Sequence[Feed]) -> list[list[np.ndarray]]:
        """The outputs for each batch of named inputs.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ModelFileError: the file is not there, or is no ONNX file.
            TargetError: it does not load, or fails on a batch.
        """
        run = self.opened(model)
        return [run(batch) for batch in batches]

    def opened(self, model: Path) -> Callable[[Feed], list[np.ndarray]]:
        """The model loaded once: a function from one batch of named inputs to its outputs."""
        session = self._open(model)
        return lambda batch: _run(session, model, batch)

    def opened_proto(
        self,
        proto: onnx.ModelProto,
        path: Path,
        outputs: Sequence[str],
        *,
        optimized: bool = True,
    ) -> Callable[[Feed], list[np.ndarray]]:
        """As `opened`, of a model in memory whose external data lies beside ``path``.

        Args:
            proto: the model.
            path: of the file that it was made of; for messages, and for its external data.
            outputs: which to compute, in this order.
            optimized: if not, each node runs as it stands in the file, in float between Q/DQ.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            TargetError: it does not load.
        """
        ort = _import()
        folder = str(path.parent.resolve())
        options = self._options(ort, {"model_external_initializers_file_folder_path": folder})
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = _session(ort, proto.SerializeToString(), options, path.name)
        return lambda batch: _run(session, path, batch, outputs)

    def _open(self, model: Path, **options: str) -> Any:
        """A session on a file."""
        ort = _import()
        _load(model)  # ONNX Runtime's own messages do not tell what is wrong with the file
        return _session(ort, str(model), self._options(ort, options), model.name)

    def _options(self, ort: Any, entries: Mapping[str, str]) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        for key, value in entries.items():
            options.add_session_config_entry(f"session.{key}", value)
        return options

    def _optimize(
        self, proto: onnx.ModelProto, folder: Path, output: Path, *, basic: bool = False
    ) -> onnx.ModelProto:
        """Let ONNX Runtime write its graph of a model whose external data is in ``folder``."""
        ort = _import()
        entries = {"model_external_initializers_file_folder_path": str(folder.resolve())}
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
            # A protocol buffer ends at 2 GB: what came with external data leaves with it.
            entries["optimized_model_external_initializers_file_name"] = f"{output.name}.data"
        options = self._options(ort, entries)
        options.optimized_model_filepath = str(output)
        if basic:
            level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = level
        _session(ort, proto.SerializeToString(), options, output.name)
        return onnx.load(output, load_external_data=False)


def latency(
    models: Mapping[str, Path],
    feeds: Feed | Mapping[str, Feed],
    *,
    repeats: int = 50,
    threads: int | None = 1,
) -> dict[str, list[float]]:
    """Time several models in turn, so that they share whatever else the machine does.

    Args:
        models: the ONNX files by name.
        feeds: the inputs of all, or those of each model by its name.
        repeats: how often each runs, after three runs that do not count.
        threads: how many threads one model may use; ``None`` lets ONNX Runtime choose.

    Returns:
        The milliseconds of each run, by name; see ``medians``.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelFileError: a file is not there, or is no ONNX file.
        TargetError: a model does not load, or fails on its inputs.
    """
    target = OnnxRuntime(threads=threads)
    # Else the threads of the model that ran last wait in a loop, and take the next one's processor.
    sessions = {name: target._open(file, force_spinning_stop="1") for name, file in models.items()}
    each = {name: _feed(feeds, name) for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for turn in range(-3, repeats):
        for name in order:
            start = time.perf_counter()
            _run(sessions[name], models[name], each[name])
            if turn >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
        order.append(order.pop(0))  # none is always the one that finds the other's cache
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each model's times.

    Example:
        >>> medians({"float": [3.0, 1.0, 2.0], "int8": [1.0]})
        {'float': 2.0, 'int8': 1.0}
    """
    return {name: statistics.median(values) for name, values in times.items()}


def _feed(feeds: Feed | Mapping[str, Feed], name: str) -> Feed:
    first = next(iter(feeds.values()), None)
    return feeds[name] if isinstance(first, Mapping) else feeds  # type: ignore[return-value]


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "this target needs ONNX Runtime, which is not installed; run `pip install onnxruntime`"
        ) from error
    return onnxruntime


def _load(model: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(model, load_external_data=False)
    except OSError as error:
        raise ModelFileError(
            f"{model} cannot be read: {error.strerror}; give the path of an ONNX file"
        ) from error
    except DecodeError as error:
        raise ModelFileError(_not_onnx(model)) from error
    if not proto.graph.node:  # an empty file is a valid, empty protocol buffer
        raise ModelFileError(_not_onnx(model))
    return proto


def _not_onnx(model: Path) -> str:
    return f"{model} is not an ONNX file, or holds no node; write it with quantkit.export_onnx"


def _session(ort: Any, source: str | bytes, options: Any, name: str) -> Any:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        raise TargetError(
            f"ONNX Runtime does not load {name}: {_one_line(error)}; "
            "`quantkit check` tells which nodes it refuses"
        ) from error


def _run(
    session: Any, model: Path, batch: Feed, names: Sequence[str] | None = None
) -> list[np.ndarray]:
    try:
        outputs: list[np.ndarray] = session.run(None if names is None else list(names), dict(batch))
    except Exception as error:  # its exceptions have no base of their own
        wanted = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in session.get_inputs())
        raise TargetError(
            f"ONNX Runtime fails on {model.name}: {_one_line(error)}; its inputs are {wanted}"
        ) from error
    return outputs


def _one_line(error: Exception) -> str:
    # "[ONNXRuntimeError] : 1 : FAIL : …" says nothing more than that it failed.
    return " ".join(str(error).split()).rpartition(" FAIL : ")[2].rstrip(".")


def _does_not_load(model: Path, why: str) -> Finding:
    fix = "Export the model again with quantkit in the onnxruntime form."
    if "output_dtype INT8 does not match" in why:
        # Seen in 1.32: moving int8 Q/DQ across a Transpose or Reshape, from opset 21 on.
        fix = "Write uint8 activations (the onnxruntime form), or opset 20."
    return Finding(
        severity=Severity.ERROR, code="does-not-load", where=model.name, why=f"{why}.", fix=fix
    )
