"""Reads a trace that was recorded elsewhere, whichever profiler wrote it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from quantkit.errors import ModelFileError
from quantkit.profiling import onnxruntime_trace, torch_trace
from quantkit.profiling.recorded import Recorded


def read_any(path: Path) -> Recorded:
    """The recording of a Chrome trace of PyTorch, or of a profile of ONNX Runtime.

    Raises:
        ModelFileError: the file cannot be read, or is neither.
    """
    try:
        data = path.read_bytes()
        told = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if isinstance(told, list):
            recording = onnxruntime_trace.parse_profile(told)
            return Recorded(recording=recording, walls={}, runtime="ONNX Runtime, as recorded")
        recording = torch_trace.parse_trace(told)
        return Recorded(recording=recording, walls={}, runtime="PyTorch, as recorded")
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give a trace that torch.profiler or ONNX "
            "Runtime wrote"
        ) from error
    except (ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        raise ModelFileError(
            f"{path}: is no trace that can be used ({' '.join(str(error).split())[:200]}); give "
            "what export_chrome_trace of torch.profiler, or ONNX Runtime's profiling wrote"
        ) from error
