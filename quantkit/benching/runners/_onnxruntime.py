"""Runs ONNX files by ONNX Runtime, with whichever execution provider."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from quantkit.benching.runner import Load, Opened, ordered
from quantkit.errors import MissingDependencyError, TargetError

if TYPE_CHECKING:
    import numpy as np

    from quantkit.benching.runner import Inputs

#: Only what ends the process is logged: all else is raised.
_FATAL: Final = 4


class OnnxRuntimeOpened(Opened):
    """A session; with a GPU its inputs and outputs lie there.

    Args:
        session: an ``InferenceSession``.
        on_gpu: whether its provider is one of a GPU.
    """

    def __init__(self, session: Any, *, on_gpu: bool) -> None:
        self._session = session
        self._names = [given.name for given in session.get_inputs()]
        self._on_gpu = on_gpu
        self._feed: dict[str, np.ndarray] = {}
        self._binding: Any = None
        self._result: list[np.ndarray] = []

    def place(self, inputs: Inputs) -> None:
        """Name the inputs as the file does; with a GPU copy them to it."""
        self._feed = dict(zip(self._names, ordered(inputs, self._names), strict=True))
        if not self._on_gpu:
            return
        import onnxruntime

        self._binding = self._session.io_binding()
        for name, array in self._feed.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            self._binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cuda")

    def run(self) -> None:
        """Run the session, and wait for the GPU."""
        if self._on_gpu:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        else:
            self._result = self._session.run(None, self._feed)

    def outputs(self) -> list[np.ndarray]:
        """In the order of the file, on the host."""
        return list(self._binding.copy_outputs_to_cpu() if self._on_gpu else self._result)


def open_session(load: Load, *providers: tuple[str, dict[str, Any]]) -> OnnxRuntimeOpened:
    """A session whose threads wait without spinning while other processes have their turn.

    Raises:
        TargetError: the provider did not take the model: the processor would run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = load.threads
    options.inter_op_num_threads = 1
    # The threads spin within a run, as they do where the model is deployed, and not behind it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(load.file), options, providers=list(providers))
    wanted = providers[0][0]
    if wanted not in session.get_providers():
        raise TargetError(
            f"ONNX Runtime did not load {wanted} and would run on the processor; install what it "
            "needs (CUDA, cuDNN or TensorRT, as ONNX Runtime's page of the provider says)"
        )
    return OnnxRuntimeOpened(session, on_gpu=load.device == "cuda")


def no_provider(name: str, install: str) -> str | None:
    """Why ONNX Runtime has no such execution provider here, if so."""
    if find_spec("onnxruntime") is None:
        return f"ONNX Runtime is not installed: {install}"
    import onnxruntime

    if name in onnxruntime.get_available_providers():
        return None
    return f"this ONNX Runtime has no {name}: {install}"


def import_onnxruntime() -> None:
    """Import it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is not installed; run `pip install onnxruntime`"
        ) from error
