"""What quantkit raises when something of the user's is wrong.

Every message names the thing, the reason and the way out, on one line. The command line prints
it as it stands and exits with ``exit_code``; anything else that escapes is a defect of quantkit.
"""

from __future__ import annotations


class QuantkitError(Exception):
    """The base of every error that quantkit raises on purpose."""

    exit_code: int = 1


class RecipeError(QuantkitError, ValueError):
    """A recipe is unknown, malformed, or asks for what cannot be had."""

    exit_code = 3


class DataError(QuantkitError, ValueError):
    """Calibration or evaluation data is empty, of the wrong shape or type, or not finite."""

    exit_code = 4


class CaptureError(QuantkitError, RuntimeError):
    """``torch.export`` cannot capture the model."""

    exit_code = 5


class ModelFileError(QuantkitError, ValueError):
    """A model or weights file cannot be read, or may not be (a pickle, say)."""

    exit_code = 6


class ExportError(QuantkitError, RuntimeError):
    """The ONNX file cannot be made or written."""

    exit_code = 7


class TargetError(QuantkitError, RuntimeError):
    """A runtime cannot do what was asked: the format, the GPU or the build."""

    exit_code = 8


class MissingDependencyError(QuantkitError, ImportError):
    """An optional package is not installed; the message holds the install command."""

    exit_code = 9


class TrainingError(QuantkitError, ArithmeticError):
    """Training has come to NaN or infinity; the message names the layer."""

    exit_code = 10


#: The key that marks an error of which all processes of a group know.
AGREED = "quantkit.agreed"


class GroupError(QuantkitError, RuntimeError):
    """Another process of a ``torch.distributed`` group has failed, or has ended.

    Attributes:
        exit_code: that of the process that has failed.
        told: whether that process tells its error itself.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.told = exit_code is not None
        self.exit_code = exit_code or QuantkitError.exit_code


def is_agreed(error: BaseException) -> bool:
    """Whether all processes of the group know of an error, and this one is to tell it."""
    return AGREED in vars(error)
