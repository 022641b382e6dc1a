"""TensorRT's calibration cache: a text of one scale a tensor, read and written bit for bit."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantkit.errors import ModelFileError, TargetError
from quantkit.files import replacing

#: The version in the headers of caches written here where none is given: TensorRT 10.13.3.
DEFAULT_VERSION: Final = 101303

#: Steps of the symmetric int8 grid on either side of zero.
STEPS: Final = 127

_HEADER = re.compile(r"TRT-(\w+)-(\w+)")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)?")
_VALUE = re.compile(r"[0-9a-fA-F]{1,8}")
_SIGN = 1 << 31
_INFINITY = 0x7F80_0000
_LARGEST = 3.4028234663852886e38


@dataclass(frozen=True)
class CalibrationCache:
    r"""The ranges that TensorRT's calibrator found, as its file holds them.

    The file is a header and then ``name: hhhhhhhh`` for each tensor: the float32 ``amax / 127`` as
    hexadecimal digits, the most significant first. Names may hold colons and spaces.

    Attributes:
        header: ``TRT-<version>-<algorithm>``.
        bits: for each tensor the bits of its scale, a float32 that is finite and not negative.

    Raises:
        ModelFileError: the header, a name or a scale is none that a cache can hold.

    Example:
        >>> cache = CalibrationCache.from_ranges({"x": 1.0})
        >>> cache.format()
        'TRT-101303-EntropyCalibration2\nx: 3c010204\n'
        >>> cache.algorithm, cache.version, round(cache.amax["x"], 6)
        ('EntropyCalibration2', '101303', 1.0)
    """

    header: str
    bits: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", dict(self.bits))
        if _HEADER.fullmatch(self.header) is None:
            raise ModelFileError(_bad_header(self.header))
        for name, bits in self.bits.items():
            problem = _problem(name, bits)
            if problem is not None:
                raise ModelFileError(f"calibration cache, tensor {name!r}: {problem}")

    @classmethod
    def from_ranges(
        cls,
        ranges: Mapping[str, float],
        *,
        version: int = DEFAULT_VERSION,
        algorithm: str = "EntropyCalibration2",
    ) -> CalibrationCache:
        """A cache of the largest magnitude of each tensor.

        Args:
            ranges: tensor name to ``amax``, finite and not negative.
            version: of the TensorRT that is to read it: 101303 is 10.13.3, 8601 is 8.6.1.
            algorithm: ``EntropyCalibration2`` or ``MinMaxCalibration``: of the calibrator that
                is to read it, whatever found the ranges.

        Raises:
            ModelFileError: a range is none, or the header cannot be read back.
        """
        bits: dict[str, int] = {}
        for name, amax in ranges.items():
            scale = amax / STEPS
            if not 0 <= scale <= _LARGEST:
                raise ModelFileError(
                    f"calibration cache, tensor {name!r}: amax is {amax}; give a finite range of "
                    "0 or more, or leave the tensor out"
                )
            # -0.0 is 0 with a sign, and no scale has one.
            bits[name] = _bits(abs(scale))
        return cls(f"TRT-{version}-{algorithm}", bits)

    @classmethod
    def parse(cls, text: str, source: str = "calibration cache") -> CalibrationCache:
        """Read the text of a cache; ``source`` names it in errors.

        Raises:
            ModelFileError: names the line and what is wrong with it.
        """
        # Not splitlines(): a name may hold what Unicode calls a line end.
        lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), 1)]
        kept = [(number, line) for number, line in lines if line.strip()]
        if not kept:
            raise ModelFileError(f"{source}: it is empty; calibrate again to make it")
        first, header = kept[0]
        if _HEADER.fullmatch(header.strip()) is None:
            raise ModelFileError(f"{source}, line {first}: {_bad_header(header)}")
        bits: dict[str, int] = {}
        for number, line in kept[1:]:
            where = f"{source}, line {number}"
            name, value = _entry(line, where)
            if name in bits:
                raise ModelFileError(f"{where}: a second scale for {name!r}; calibrate again")
            problem = _problem(name, value)
            if problem is not None:
                raise ModelFileError(f"{where}: {problem}")
            if number == len(lines) and len(line.rpartition(":")[2].strip()) < 8:
                raise ModelFileError(f"{where}: the file ends within {line[:80]!r}; copy it again")
            bits[name] = value
        return cls(header.strip(), bits)

    def format(self) -> str:
        """The text of the file."""
        return "".join([f"{self.header}\n", *(f"{n}: {b:08x}\n" for n, b in self.bits.items())])

    @property
    def version(self) -> str:
        """The version in the header; ``101303`` is 10.13.3, ``8601`` is 8.6.1."""
        return self._header[0]

    @property
    def algorithm(self) -> str:
        """The algorithm in the header, such as ``EntropyCalibration2``."""
        return self._header[1]

    @property
    def scales(self) -> dict[str, float]:
        """The step of each tensor's grid: the float32 of the file, exactly."""
        return {name: _float(bits) for name, bits in self.bits.items()}

    @property
    def amax(self) -> dict[str, float]:
        """The largest magnitude of each tensor, exactly 127 scales; ``from_ranges`` undoes it."""
        return {name: scale * STEPS for name, scale in self.scales.items()}

    @property
    def _header(self) -> tuple[str, str]:
        match = _HEADER.fullmatch(self.header)
        assert match is not None  # checked at birth
        return match[1], match[2]


def header_version(text: str) -> int:
    """The number that headers have for a version of TensorRT, written with or without points.

    Raises:
        TargetError: it is no version that reads calibration caches, 8.5 to 10.

    Example:
        >>> header_version("10.13.3"), header_version("8.6.1"), header_version("101303")
        (101303, 8601, 101303)
    """
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        number = int(text) if text.strip().isdigit() else 0
    else:
        major, minor, patch = (int(part or 0) for part in match.groups())
        number = version_number(major, minor, patch) if max(minor, patch) < 100 else 0
    if not (8500 <= number < 10000 or 100000 <= number < 110000):
        raise TargetError(
            f"{text!r} is no version of TensorRT that reads calibration caches; those are 8.5 to "
            "10.16: write 10.13.3, or 101303 as in their headers"
        )
    return number


def version_number(major: int, minor: int, patch: int) -> int:
    """The version as headers of calibration caches hold it: 8601 is 8.6.1, 101303 10.13.3."""
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def read_cache(path: Path | str) -> CalibrationCache:
    """Read a calibration cache.

    Raises:
        ModelFileError: it cannot be read, or a line of it is malformed.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give the path of a calibration cache"
        ) from error
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path}: no calibration cache, it is no text (byte {error.start}); TensorRT's begin "
            "with TRT-"
        ) from error
    return CalibrationCache.parse(text, str(path))


def write_cache(path: Path | str, cache: CalibrationCache) -> None:
    """Write a calibration cache, whole or not at all.

    Raises:
        ExportError: it cannot be written.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(cache.format().encode())


def _entry(line: str, where: str) -> tuple[str, int]:
    # The last colon: names of tensors hold colons of their own.
    name, colon, value = line.rpartition(":")
    if not colon or _VALUE.fullmatch(value.strip()) is None:
        raise ModelFileError(
            f"{where}: {line.strip()[:80]!r} is no `name: hhhhhhhh` of up to eight hexadecimal "
            "digits; calibrate again"
        )
    return name, int(value.strip(), 16)


def _problem(name: str, bits: int) -> str | None:
    """What is wrong with one entry."""
    if not name or any(part in name for part in "\n\r"):
        return f"{name!r} is no name for a tensor; a cache has one line for each"
    if not 0 <= bits < 1 << 32:
        return f"{bits} is no float32; give its 32 bits"
    if bits & _SIGN or bits >= _INFINITY:
        return f"its scale is {_float(bits)}; a scale is finite and not negative: calibrate again"
    return None


def _bad_header(header: str) -> str:
    return (
        f"{header.strip()[:80]!r} is no header of a calibration cache; it is "
        "TRT-<version>-<algorithm>, such as TRT-101303-EntropyCalibration2"
    )


def _bits(value: float) -> int:
    """The nearest float32 of a number; two roundings (its own and this) equal one."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)


def _float(bits: int) -> float:
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(value)
