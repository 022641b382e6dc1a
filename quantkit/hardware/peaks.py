"""What NVIDIA's GPUs reach at most: products a second and bytes a second, by their data sheets.

All figures are dense: data sheets often give those with 2:4 sparsity, which are twice as high and
are halved here. Sums of 16-bit and 8-bit floats are in fp32, as TensorRT and PyTorch have them; on
GeForce that is half of what the data sheets put first. A Jetson's INT8 is that of its GPU, without
its DLA. What a source does not give is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from quantkit.errors import TargetError
from quantkit.hardware.formats import Format
from quantkit.hardware.sources import Source

_F = Format


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one product reaches at most.

    Attributes:
        name: of the product, such as ``A100 SXM 80GB``.
        words: what the driver's name of it has, all of them.
        tera: operations a second, in 10^12, by what is multiplied.
        bandwidth: of its memory, in 10^9 bytes a second.
        source: the data sheet.
    """

    name: str
    words: frozenset[str]
    tera: Mapping[Format, float]
    bandwidth: float
    source: Source

    def __post_init__(self) -> None:
        if not (self.tera and min(self.tera.values()) > 0 and self.bandwidth > 0):
            raise ValueError(f"{self.name}: peaks and bandwidth must be positive")


_CONTENT: Final = "https://www.nvidia.com/content/dam/en-zz/Solutions"
_T4: Final = Source(
    "NVIDIA, T4 Tensor Core GPU, data sheet",
    f"{_CONTENT}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
)
_A10: Final = Source(
    "NVIDIA, A10 Tensor Core GPU, data sheet",
    f"{_CONTENT}/Data-Center/a10/pdf/datasheet-new/nvidia-a10-datasheet.pdf",
)
_A30: Final = Source(
    "NVIDIA, A30 Tensor Core GPU", "https://www.nvidia.com/en-us/data-center/products/a30-gpu/"
)
_A40: Final = Source("NVIDIA, A40", "https://www.nvidia.com/en-us/data-center/a40/")
_A100: Final = Source(
    "NVIDIA, A100 Tensor Core GPU, data sheet",
    f"{_CONTENT}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
)
_L4: Final = Source("NVIDIA, L4 Tensor Core GPU", "https://www.nvidia.com/en-us/data-center/l4/")
_L40S: Final = Source("NVIDIA, L40S", "https://www.nvidia.com/en-us/data-center/l40s/")
_H100: Final = Source(
    "NVIDIA, H100 Tensor Core GPU", "https://www.nvidia.com/en-us/data-center/h100/"
)
_H200: Final = Source(
    "NVIDIA, H200 Tensor Core GPU", "https://www.nvidia.com/en-us/data-center/h200/"
)
_B200: Final = Source("NVIDIA, HGX platform", "https://www.nvidia.com/en-us/data-center/hgx/")
_GA102: Final = Source(
    "NVIDIA, Ampere GA102 GPU Architecture, white paper, appendix A",
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
)
_AD102: Final = Source(
    "NVIDIA, Ada GPU Architecture, white paper, appendix A",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
)
_GB202: Final = Source(
    "NVIDIA, RTX Blackwell GPU Architecture, white paper, appendix A",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf",
)
_ORIN: Final = Source(
    "NVIDIA, Jetson AGX Orin Series, technical brief v1.2",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/gtcf21/jetson-orin/"
    "nvidia-jetson-agx-orin-technical-brief.pdf",
)


def _peak(
    name: str, words: str, source: Source, bandwidth: float, *, fp32: float, int8: float,
    tf32: float | None = None, half: float | None = None, fp8: float | None = None,
    fp4: float | None = None, bf16: bool = True,
) -> Peak:  # fmt: skip
    given = {
        _F.FP32: fp32, _F.TF32: tf32, _F.FP16: half, _F.BF16: half if bf16 else None,
        _F.INT8: int8, _F.FP8: fp8, _F.NVFP4: fp4,
    }  # fmt: skip
    tera = {format: value for format, value in given.items() if value is not None}
    return Peak(
        name=name, words=frozenset(words.split()), tera=tera, bandwidth=bandwidth, source=source
    )


PEAKS: Final[tuple[Peak, ...]] = (
    _peak("T4", "t4", _T4, 320, fp32=8.1, half=65, int8=130, bf16=False),
    _peak("A10", "a10", _A10, 600, fp32=31.2, tf32=62.5, half=125, int8=250),
    _peak("A30", "a30", _A30, 933, fp32=10.3, tf32=82, half=165, int8=330),
    _peak("A40", "a40", _A40, 696, fp32=37.4, tf32=74.8, half=149.7, int8=299.3),
    _peak(
        "A100 SXM 40GB", "a100 sxm4 40gb", _A100, 1555, fp32=19.5, tf32=156, half=312, int8=624
    ),
    _peak(
        "A100 PCIe 40GB", "a100 pcie 40gb", _A100, 1555, fp32=19.5, tf32=156, half=312, int8=624
    ),
    _peak(
        "A100 SXM 80GB", "a100 sxm4 80gb", _A100, 2039, fp32=19.5, tf32=156, half=312, int8=624
    ),
    _peak(
        "A100 PCIe 80GB", "a100 pcie 80gb", _A100, 1935, fp32=19.5, tf32=156, half=312, int8=624
    ),
    _peak("L4", "l4", _L4, 300, fp32=30.3, tf32=60, half=121, int8=242.5, fp8=242.5),
    _peak("L40S", "l40s", _L40S, 864, fp32=91.6, tf32=183, half=362, int8=733, fp8=733),
    _peak(
        "H100 SXM", "h100 hbm3", _H100, 3350, fp32=67, tf32=494.7, half=989.4, int8=1978.9,
        fp8=1978.9,
    ),
    _peak("H100 PCIe", "h100 pcie", _H100, 2000, fp32=51, tf32=378, half=756, int8=1513, fp8=1513),
    _peak(
        "H200 SXM", "h200", _H200, 4800, fp32=67, tf32=494.7, half=989.4, int8=1978.9, fp8=1978.9
    ),
    _peak(
        "B200", "b200", _B200, 8000, fp32=75, tf32=1100, half=2250, int8=4500, fp8=4500, fp4=9000
    ),
    _peak("RTX 3090", "rtx 3090", _GA102, 936, fp32=35.6, tf32=35.6, half=71, int8=284),
    _peak(
        "RTX 4090", "rtx 4090", _AD102, 1008, fp32=82.6, tf32=82.6, half=165.2, int8=660.6,
        fp8=330.3,
    ),
    _peak(
        "RTX 5090", "rtx 5090", _GB202, 1792, fp32=104.8, tf32=104.8, half=209.5, int8=838,
        fp8=419, fp4=1676,
    ),
    _peak("Jetson AGX Orin 64GB", "jetson agx orin 64gb", _ORIN, 204.8, fp32=5.3, int8=85),
)  # fmt: skip

#: Other products whose names begin alike: what is in their names, and not in the table's.
_OTHERS: Final = frozenset({"laptop", "ti", "super", "d", "mobile", "nvl", "mig", "gh200"})


def peak_of(name: str) -> Peak | None:
    """The row of a product, by its own name or the driver's; ``None`` where the table has none.

    Example:
        >>> peak_of("NVIDIA A100-SXM4-80GB").name, peak_of("NVIDIA H100 80GB HBM3").name
        ('A100 SXM 80GB', 'H100 SXM')
        >>> peak_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None, peak_of("rtx 4090").name
        (True, 'RTX 4090')
    """
    plain = name.strip().lower()
    for peak in PEAKS:
        if peak.name.lower() == plain:
            return peak
    words = frozenset(re.split(r"[\s-]+", plain))
    if words & _OTHERS:
        return None
    return next((peak for peak in PEAKS if peak.words <= words), None)


def require_peak(name: str) -> Peak:
    """The row of a product.

    Raises:
        TargetError: the table has none.
    """
    found = peak_of(name)
    if found is None:
        names = ", ".join(peak.name for peak in PEAKS)
        raise TargetError(
            f"no peaks are known of {name!r}; measure them on it, or choose of: {names}"
        )
    return found
