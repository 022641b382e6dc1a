"""NVIDIA's GPUs: products by compute capability, and what each multiplies in.

Products are those of NVIDIA's two lists (``sources.CUDA_GPUS``, ``sources.LEGACY_GPUS``), without
``Ti`` and ``Super``, which have the capability of the plain name, and some that clouds offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from quantkit.hardware.formats import Format

Capability: TypeAlias = tuple[int, int]

_F = Format


@dataclass(frozen=True, kw_only=True)
class Chip:
    """The GPUs of one compute capability.

    Attributes:
        capability: such as ``(8, 6)``.
        architecture: such as ``Ampere``.
        products: the names of the GPUs, without ``NVIDIA`` and ``GeForce``.
        tensor_core: what its tensor cores multiply.
        cuda_core: what its other units multiply faster than by conversion to fp32.
        weight_only: what kernels for it unpack weights from.
    """

    capability: Capability
    architecture: str
    products: tuple[str, ...]
    tensor_core: frozenset[Format] = frozenset()
    cuda_core: frozenset[Format] = frozenset({_F.FP32})
    weight_only: frozenset[Format] = frozenset()

    def has(self, format: Format) -> bool:
        """Whether some unit multiplies in it, or weights may be stored in it."""
        return format in self.tensor_core | self.cuda_core | self.weight_only

    @property
    def label(self) -> str:
        """Such as ``8.6 Ampere``."""
        return f"{dotted(self.capability)} {self.architecture}"


def dotted(capability: Capability) -> str:
    """Such as ``8.6``.

    Example:
        >>> dotted((12, 0))
        '12.0'
    """
    return f"{capability[0]}.{capability[1]}"


# By ``sources.TENSOR_CORES``, which begins with 7.5; Volta and Xavier, and units other than tensor
# cores, by the support matrices of TensorRT 8 (columns "INT8", "INT8 Tensor Cores") and
# ``sources.MIXED_PRECISION``; 2:4 by ``sources.SPARSITY``; block scales of 32 and 16 values
# (MXFP8, NVFP4) are read by the tensor cores from 10.0 on (``sources.TRANSFORMER_ENGINE``). The
# tensor cores of 7.5 to 8.9 multiply INT4 as well, which no runtime here uses: INT4 is a way to
# store weights, from Ampere on (``sources.MODELOPT``).
_FP32: Final = frozenset({_F.FP32})
_HALF: Final = _FP32 | {_F.FP16}
_DP4A: Final = _FP32 | {_F.INT8}
_VOLTA: Final = frozenset({_F.FP16})
_TURING: Final = frozenset({_F.FP16, _F.INT8})
_AMPERE: Final = _TURING | {_F.TF32, _F.BF16, _F.SPARSE}
_ADA: Final = _AMPERE | {_F.FP8}
_BLACKWELL: Final = _ADA | {_F.MXFP8, _F.NVFP4}
_INT4: Final = frozenset({_F.INT4})

CHIPS: Final[tuple[Chip, ...]] = (
    Chip(
        capability=(5, 0),
        architecture="Maxwell",
        products=(
            *("Quadro K2200", "Quadro K1200", "Quadro K620", "Quadro M1200", "Quadro M520"),
            *("Quadro M5000M", "Quadro M4000M", "Quadro M3000M", "Quadro M2000M", "Quadro M1000M"),
            *("Quadro M600M", "Quadro M500M", "NVS 810", "GTX 750", "GTX 960M", "GTX 950M"),
            "940M",
        ),
    ),
    Chip(
        capability=(5, 2),
        architecture="Maxwell",
        products=(
            *("M60", "M40", "Quadro M6000", "Quadro M5000", "Quadro M4000", "Quadro M2000"),
            *("Quadro M5500M", "Quadro M2200", "Quadro M620", "GTX TITAN X", "GTX 980", "GTX 970"),
            *("GTX 960", "GTX 950", "GTX 980M", "GTX 970M", "GTX 965M", "910M"),
        ),
    ),
    Chip(
        capability=(5, 3),
        architecture="Maxwell",
        products=("Jetson Nano", "Jetson TX1"),
        cuda_core=_HALF,
    ),
    Chip(
        capability=(6, 0), architecture="Pascal", products=("P100", "Quadro GP100"), cuda_core=_HALF
    ),
    Chip(
        capability=(6, 1),
        architecture="Pascal",
        products=(
            *("P4", "P40", "Quadro P6000", "Quadro P5200", "Quadro P5000", "Quadro P4200"),
            *("Quadro P4000", "Quadro P3200", "Quadro P3000", "Quadro P2200", "Quadro P2000"),
            *("Quadro P1000", "Quadro P620", "Quadro P600", "Quadro P500", "Quadro P400", "P620"),
            *("P520", "TITAN Xp", "TITAN X", "GTX 1080", "GTX 1070", "GTX 1060", "GTX 1050"),
        ),
        cuda_core=_DP4A,
    ),
    Chip(
        capability=(6, 2),
        architecture="Pascal",
        products=("Jetson TX2", "TX2"),
        cuda_core=_HALF,
    ),
    Chip(
        capability=(7, 0),
        architecture="Volta",
        products=("V100", "Quadro GV100", "TITAN V"),
        tensor_core=_VOLTA,
        cuda_core=_DP4A,
    ),
    Chip(
        capability=(7, 2),
        architecture="Volta",
        products=("Jetson AGX Xavier", "Jetson Xavier NX", "Xavier"),
        tensor_core=_VOLTA | {_F.INT8},
        cuda_core=_DP4A,
    ),
    Chip(
        capability=(7, 5),
        architecture="Turing",
        products=(
            *("T4", "RTX 2080", "RTX 2070", "RTX 2060", "TITAN RTX", "Quadro RTX 8000"),
            *("Quadro RTX 6000", "Quadro RTX 5000", "Quadro RTX 4000", "Quadro RTX 3000"),
            *("T400", "T500", "T550", "T600", "T1000", "T1200", "Quadro T1000", "Quadro T2000"),
            *("GTX 1660", "GTX 1650", "GTX 1630"),
        ),
        tensor_core=_TURING,
        cuda_core=_DP4A | _HALF,
    ),
    Chip(
        capability=(8, 0),
        architecture="Ampere",
        products=("A100", "A30", "A800", "DGX A100"),
        tensor_core=_AMPERE,
        weight_only=_INT4,
    ),
    Chip(
        capability=(8, 6),
        architecture="Ampere",
        products=(
            *("A40", "A10", "A16", "A2", "A10G", "A10M", "RTX A6000", "A6000", "RTX A5500"),
            *("RTX A5000", "A5000", "RTX A4500", "RTX A4000", "A4000", "RTX A3000", "RTX A2000"),
            *("RTX A1000", "RTX A500", "RTX A400", "RTX 3090", "RTX 3080", "RTX 3070", "RTX 3060"),
            "RTX 3050",
        ),
        tensor_core=_AMPERE,
        weight_only=_INT4,
    ),
    Chip(
        capability=(8, 7),
        architecture="Ampere",
        products=("Jetson AGX Orin", "Jetson Orin NX", "Jetson Orin Nano", "Jetson Orin", "Orin"),
        tensor_core=_AMPERE,
        weight_only=_INT4,
    ),
    Chip(
        capability=(8, 9),
        architecture="Ada",
        products=(
            *("L4", "L40", "L40S", "L2", "L20", "RTX 6000 Ada", "RTX 5880 Ada", "RTX 5000 Ada"),
            *("RTX 4500 Ada", "RTX 4000 Ada", "RTX 4000 SFF Ada", "RTX 3500 Ada", "RTX 3000 Ada"),
            *("RTX 2000 Ada", "RTX 1000 Ada", "RTX 500 Ada", "RTX 4090", "RTX 4080", "RTX 4070"),
            *("RTX 4060", "RTX 4050"),
        ),
        tensor_core=_ADA,
        weight_only=_INT4,
    ),
    Chip(
        capability=(9, 0),
        architecture="Hopper",
        products=("H100", "H200", "GH200", "H800", "H20"),
        tensor_core=_ADA,
        weight_only=_INT4,
    ),
    Chip(
        capability=(10, 0),
        architecture="Blackwell",
        products=("B200", "GB200", "B100"),
        tensor_core=_BLACKWELL,
        weight_only=_INT4,
    ),
    Chip(
        capability=(10, 3),
        architecture="Blackwell",
        products=("B300", "GB300"),
        tensor_core=_BLACKWELL,
        weight_only=_INT4,
    ),
    Chip(
        capability=(11, 0),
        architecture="Blackwell",
        products=("Jetson Thor", "Jetson AGX Thor", "Jetson T5000", "Jetson T4000", "Thor"),
        tensor_core=_BLACKWELL,
        weight_only=_INT4,
    ),
    Chip(
        capability=(12, 0),
        architecture="Blackwell",
        products=(
            *("RTX 5090", "RTX 5080", "RTX 5070", "RTX 5060", "RTX 5050", "RTX PRO 6000"),
            *("RTX PRO 5000", "RTX PRO 4500", "RTX PRO 4000", "RTX PRO 2000"),
        ),
        tensor_core=_BLACKWELL,
        weight_only=_INT4,
    ),
    Chip(
        capability=(12, 1),
        architecture="Blackwell",
        products=("GB10", "DGX Spark"),
        tensor_core=_BLACKWELL,
        weight_only=_INT4,
    ),
)

#: Of compute capability 7.5, without tensor cores (``sources.NO_TENSOR_CORES``).
WITHOUT_TENSOR_CORES: Final = frozenset(
    {"T400", "T500", "T550", "T600", "T1000", "T1200", "Quadro T1000", "Quadro T2000"}
    | {"GTX 1660", "GTX 1650", "GTX 1630"}
)

#: Compute capabilities that have been renumbered: Thor was 10.1 before CUDA 13.
RENUMBERED: Final[dict[Capability, Capability]] = {(10, 1): (11, 0)}
