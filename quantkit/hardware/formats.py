"""The words of the table: formats, runtimes, verdicts, and what one cell holds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum

from quantkit.errors import RecipeError
from quantkit.hardware.sources import Source


class Format(StrEnum):
    """What numbers are multiplied in; of ``int4`` the weights alone."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"  #: E4M3, one scale a tensor or channel
    MXFP8 = "mxfp8"  #: E4M3, one power of two for 32 values
    NVFP4 = "nvfp4"  #: E2M1, one FP8 scale for 16 values
    SPARSE = "2:4"  #: two zeros in each four weights, in any of the above

    @classmethod
    def of(cls, name: str) -> Format:
        """The format of a name, of a recipe's ``dtype`` too.

        Raises:
            RecipeError: there is no such format.

        Example:
            >>> Format.of("fp8_e4m3"), Format.of("uint8")
            (<Format.FP8: 'fp8'>, <Format.INT8: 'int8'>)
        """
        key = name.strip().lower()
        found = _NAMES.get(key)
        if found is None:
            close = difflib.get_close_matches(key, _NAMES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"no format {name!r}; there are: {', '.join(Format)}{hint}")
        return found


_NAMES: dict[str, Format] = {format.value: format for format in Format} | {
    "uint8": Format.INT8,
    "fp8_e4m3": Format.FP8,
    "float8": Format.FP8,
    "fp4": Format.NVFP4,
    "sparse": Format.SPARSE,
    "sparsity": Format.SPARSE,
    "half": Format.FP16,
    "float16": Format.FP16,
    "bfloat16": Format.BF16,
    "float32": Format.FP32,
}


class Runtime(StrEnum):
    """What runs a model on a GPU: a column of the table."""

    TENSORRT_10 = "tensorrt10"
    TENSORRT_11 = "tensorrt11"
    TENSORRT_RTX = "tensorrt_rtx"
    TORCH_TENSORRT = "torch_tensorrt"
    INDUCTOR = "inductor"
    ONNXRUNTIME_CUDA = "onnxruntime_cuda"
    ONNXRUNTIME_TENSORRT = "onnxruntime_tensorrt"

    @property
    def label(self) -> str:
        """What it is called, and the version that the table was made for."""
        return _TITLES[self]

    @property
    def short(self) -> str:
        """The label without its version."""
        return _TITLES[self].partition(" (")[0]

    @property
    def target(self) -> str:
        """The target of quantkit that it belongs to."""
        if self.value.startswith("tensorrt1"):
            return "tensorrt"
        return "onnxruntime" if self.value.startswith("onnxruntime") else self.value

    @classmethod
    def of(cls, name: str) -> tuple[Runtime, ...]:
        """The runtimes of a target, or the one of that name.

        Raises:
            RecipeError: there is none.

        Example:
            >>> [str(runtime) for runtime in Runtime.of("tensorrt")]
            ['tensorrt10', 'tensorrt11']
        """
        found = tuple(runtime for runtime in cls if name in (runtime.value, runtime.target))
        if not found:
            known = list(dict.fromkeys(n for r in cls for n in (r.target, r.value)))
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"no runtime {name!r}; there are: {', '.join(known)}{hint}")
        return found


_TITLES: dict[Runtime, str] = {
    Runtime.TENSORRT_10: "TensorRT 10 (10.0 to 10.16)",
    Runtime.TENSORRT_11: "TensorRT 11 (11.0 to 11.5)",
    Runtime.TENSORRT_RTX: "TensorRT-RTX (1.7.1)",
    Runtime.TORCH_TENSORRT: "Torch-TensorRT (2.13, with TensorRT 11.0)",
    Runtime.INDUCTOR: "Inductor (torch.compile of PyTorch 2.13)",
    Runtime.ONNXRUNTIME_CUDA: "ONNX Runtime CUDA (that execution provider)",
    Runtime.ONNXRUNTIME_TENSORRT: "ONNX Runtime TensorRT (that provider, with TensorRT 10.9)",
}


class Verdict(StrEnum):
    """How a GPU runs a format in a runtime."""

    TENSOR_CORE = "tensor-core"  #: multiplied in tensor cores
    CUDA_CORE = "cuda-core"  #: multiplied by other units, such as four int8 products at a time
    WEIGHT_ONLY = "weight-only"  #: weights are stored in it, products are in a wider format
    EMULATED = "emulated"  #: values are rounded to it, products are in a wider format
    NO = "no"  #: refused, or there is no way to ask for it
    UNKNOWN = "unknown"  #: documents do not say, and it has not been seen

    @property
    def short(self) -> str:
        """One word of up to eight letters."""
        return {"tensor-core": "tensor", "cuda-core": "cuda", "weight-only": "weights"}.get(
            self.value, self.value
        )

    @property
    def letter(self) -> str:
        """One letter or sign, for wide tables."""
        return {"no": "-", "unknown": "?"}.get(self.value, self.value[0].upper())


@dataclass(frozen=True, kw_only=True)
class Support:
    """How one GPU runs one format in one runtime.

    Attributes:
        verdict: in one word.
        why: one sentence or two.
        instead: what to use, as one imperative sentence; empty where nothing is better.
        sources: where it stands, or how it was seen.
        only: the operators that run so, where others do not; empty where all do.
    """

    verdict: Verdict
    why: str
    instead: str
    sources: tuple[Source, ...]
    only: str = ""

    @property
    def mark(self) -> str:
        """A star where some operators alone run so."""
        return "*" if self.only else ""

    @property
    def runs(self) -> bool:
        """Whether it gains anything: products, or at least weights, are in the format."""
        return self.verdict in (Verdict.TENSOR_CORE, Verdict.CUDA_CORE, Verdict.WEIGHT_ONLY)
