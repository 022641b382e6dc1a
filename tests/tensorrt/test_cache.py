"""The calibration cache: exact to the bit, and strict about what it reads."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import ExportError, ModelFileError, TargetError
from quantkit.tensorrt.cache import CalibrationCache, header_version, read_cache, write_cache

HEADER = "TRT-101303-EntropyCalibration2"

#: Names as exporters write them and as nobody should: anything but a line end, and not nothing.
names = st.text(
    st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1, max_size=20
)
scale_bits = st.integers(0, 0x7F7F_FFFF)  # zero, subnormal and normal, up to the largest
amaxes = st.floats(0, 2.0**100, width=32)


def read_by_description(text: str) -> tuple[str, dict[str, np.float32]]:
    """A second reader: a header, then `name: hex` split at the last colon, big end first."""
    header, *lines = text.split("\n")
    scales = {}
    for line in lines:
        if line:
            cut = max(i for i, letter in enumerate(line) if letter == ":")
            digits = line[cut + 1 :].strip()
            scales[line[:cut]] = np.frombuffer(bytes.fromhex(digits), dtype=">f4")[0]
    return header, scales


@given(st.dictionaries(names, scale_bits, max_size=8), st.sampled_from([8601, 101303, 101600]))
def test_a_cache_comes_back_as_it_was_written(bits: dict[str, int], version: int) -> None:
    cache = CalibrationCache(f"TRT-{version}-MinMaxCalibration", bits)

    again = CalibrationCache.parse(cache.format())

    assert again == cache
    assert again.format() == cache.format()
    assert (again.version, again.algorithm) == (str(version), "MinMaxCalibration")


@given(st.dictionaries(names, amaxes, max_size=8))
def test_a_reader_written_from_the_description_reads_the_same_bits(
    ranges: dict[str, float],
) -> None:
    cache = CalibrationCache.from_ranges(ranges)

    header, scales = read_by_description(cache.format())

    assert header == cache.header
    assert list(scales) == list(ranges)
    for name, amax in ranges.items():
        expected = np.float32(amax) / np.float32(127)
        assert struct.pack("<f", scales[name]) == struct.pack("<f", expected)
        assert struct.pack("<f", cache.scales[name]) == struct.pack("<f", expected)


@given(st.dictionaries(names, scale_bits, max_size=8))
def test_ranges_taken_from_a_cache_give_the_same_cache(bits: dict[str, int]) -> None:
    cache = CalibrationCache(HEADER, bits)
    assert CalibrationCache.from_ranges(cache.amax) == cache


def test_the_example_of_the_format_has_the_scale_it_should() -> None:
    cache = CalibrationCache.parse(f"{HEADER}\ninput: 3c010a14\n")
    assert cache.scales["input"] == pytest.approx(0.0078760, abs=1e-7)
    assert cache.amax["input"] == cache.scales["input"] * 127


def test_names_may_hold_colons_and_spaces() -> None:
    name = "(Unnamed Layer* 3) [Convolution]: out:0"
    assert CalibrationCache.parse(f"{HEADER}\n{name}: 3f800000\n").scales == {name: 1.0}


def test_values_without_leading_zeros_and_foreign_line_ends_are_read() -> None:
    text = "TRT-8XXX-EntropyCalibration2\r\nx: 0\r\ny: 3F800000\r\n\r\n"
    cache = CalibrationCache.parse(text)
    assert (cache.version, cache.scales) == ("8XXX", {"x": 0.0, "y": 1.0})


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("input: 3c010a14", r"line 1: .* is no header"),
        (f"{HEADER}\nx: 3c01\ny: zzzz", r"line 3: 'y: zzzz' is no"),
        (f"{HEADER}\nx: 123456789", "line 2: .*up to eight hexadecimal"),
        (f"{HEADER}\nx: -1", "line 2: "),
        (f"{HEADER}\nx 3c010a14", "line 2: "),
        (f"{HEADER}\nx:", "line 2: "),
        (f"{HEADER}\n: 3c010a14", "line 2: '' is no name"),
        (f"{HEADER}\nx: 7fc00000", "line 2: its scale is nan"),
        (f"{HEADER}\nx: 7f800000", "line 2: its scale is inf"),
        (f"{HEADER}\nx: bf800000", "line 2: its scale is -1.0"),
        (f"{HEADER}\nx: 80000000", "line 2: its scale is -0.0"),
        (f"{HEADER}\nx: 1\ny: 2\nx: 3", "line 4: a second scale for 'x'"),
    ],
)
def test_a_malformed_cache_is_refused_by_file_and_line(
    tmp_path: Path, lines: str, why: str
) -> None:
    path = tmp_path / "some.cache"
    path.write_text(lines)
    with pytest.raises(ModelFileError, match=f"some.cache.*{why}"):
        read_cache(path)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.cache"
    with pytest.raises(ModelFileError, match=r"some\.cache: cannot be read"):
        read_cache(path)
    path.write_bytes(b"TRT-\xff\xfe")
    with pytest.raises(ModelFileError, match=r"some\.cache: no calibration cache, it is no text"):
        read_cache(path)


@pytest.mark.parametrize("amax", [-1.0, float("nan"), float("inf"), 1e300])
def test_what_is_no_range_is_not_written(amax: float) -> None:
    with pytest.raises(ModelFileError, match=r"tensor 'conv1': amax is"):
        CalibrationCache.from_ranges({"conv1": amax})


@pytest.mark.parametrize(
    ("header", "bits", "why"),
    [
        ("EntropyCalibration2", {}, "is no header"),
        ("TRT-1-A\nx: 0", {}, "is no header"),
        (HEADER, {"x": 1 << 32}, "is no float32"),
        (HEADER, {"x": -1}, "is no float32"),
        (HEADER, {"x\ny": 0}, "is no name"),
    ],
)
def test_what_cannot_be_read_back_is_refused_at_birth(
    header: str, bits: dict[str, int], why: str
) -> None:
    with pytest.raises(ModelFileError, match=why):
        CalibrationCache(header, bits)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.5", 8500), ("8.6.1", 8601), ("9.3.0", 9300), ("10.13.3", 101303), ("10.16", 101600),
     ("10.13.3.9", 101303), ("101303", 101303), ("8601", 8601)],
)  # fmt: skip
def test_versions_are_written_with_points_or_as_headers_have_them(text: str, number: int) -> None:
    assert header_version(text) == number
    cache = CalibrationCache.from_ranges({}, version=number)
    assert header_version(cache.version) == number


@pytest.mark.parametrize("text", ["", "11.0", "8.4.9", "10.130.3", "1", "110000", "8.5.x", "-8.6"])
def test_a_version_that_reads_no_caches_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match=r"those are 8\.5 to 10\.16"):
        header_version(text)


def test_a_cache_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "some.cache"
    cache = CalibrationCache.from_ranges({"x": 3.0}, version=8601, algorithm="MinMaxCalibration")
    write_cache(path, cache)
    assert read_cache(path) == cache
    assert path.read_bytes() == b"TRT-8601-MinMaxCalibration\nx: 3cc18306\n"
    assert [file.name for file in tmp_path.iterdir()] == ["some.cache"]
    with pytest.raises(ExportError, match="cannot be written"):
        write_cache(tmp_path / "missing" / "some.cache", cache)


def test_a_cache_that_ends_within_a_value_is_refused() -> None:
    text = CalibrationCache.from_ranges({"x": 1.0, "y": 2.0}).format()
    assert CalibrationCache.parse(text.removesuffix("\n")) == CalibrationCache.parse(text)
    with pytest.raises(ModelFileError, match="line 3: the file ends within 'y: 3c8"):
        CalibrationCache.parse(text[:-4])
