"""Rooflines: pure arithmetic, the table of data sheets, this machine, and the picture."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import ExportError, TargetError
from quantkit.graph.abstract import Kind
from quantkit.hardware.gpus import Gpu
from quantkit.hardware.peaks import PEAKS, Peak, peak_of
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.roof_picture import save_roofline
from quantkit.profiling.roofline import Roof, gains, place, roofline
from quantkit.profiling.roofs import measure_roof, roof_from_table
from quantkit.profiling.work import LayerWork, ModelWork

sizes = st.integers(0, 10**7)
works = st.builds(
    LayerWork, name=st.just("layer"), kind=st.just(Kind.CONV), macs=st.integers(0, 10**12),
    read=sizes, weights=sizes, biases=sizes, written=sizes, other=sizes,
)  # fmt: skip
speeds = st.floats(1e9, 1e16)
roofs = st.builds(
    lambda fp32, fp16, int8, bandwidth: Roof(
        name="device", peaks={Dtype.FP32: fp32, Dtype.FP16: fp16, Dtype.INT8: int8},
        bandwidth=bandwidth, source="table",
    ),
    speeds, speeds, speeds, speeds,
)  # fmt: skip


@given(work=works, roof=roofs)
def test_the_attainable_time_is_the_longer_of_computing_and_moving(
    work: LayerWork, roof: Roof
) -> None:
    point = place(work, None, roof)
    compute, memory = work.flops / roof.peaks[Dtype.FP32], work.bytes() / roof.bandwidth
    assert point.attainable == max(compute, memory)
    assert point.bound == ("compute" if compute > memory else "memory")
    assert (point.intensity > roof.ridge(Dtype.FP32) * (1 + 1e-9)) <= (point.bound == "compute")


@given(work=works, roof=roofs)
def test_quantizing_never_loses_since_a_layer_may_stay_as_it_is(
    work: LayerWork, roof: Roof
) -> None:
    found = gains(work, roof, Dtype.FP32)
    assert set(found) == {Dtype.FP16, Dtype.INT8}
    assert all(gain >= 1.0 for gain in found.values())


@given(work=works, roof=roofs, factor=st.floats(1.0, 100.0))
def test_a_faster_peak_in_int8_never_gains_less(work: LayerWork, roof: Roof, factor: float) -> None:
    faster = {**roof.peaks, Dtype.INT8: factor * roof.peaks[Dtype.INT8]}
    other = Roof(name="b", peaks=faster, bandwidth=roof.bandwidth, source="table")
    assert gains(work, other, Dtype.FP32)[Dtype.INT8] >= gains(work, roof, Dtype.FP32)[Dtype.INT8]


@given(work=works, roof=roofs, factor=st.floats(1.0, 100.0))
def test_more_bandwidth_never_takes_longer(work: LayerWork, roof: Roof, factor: float) -> None:
    wider = Roof(name="b", peaks=roof.peaks, bandwidth=factor * roof.bandwidth, source="table")
    assert wider.seconds(work, Dtype.FP32) <= roof.seconds(work, Dtype.FP32)


@given(work=works, roof=roofs, seconds=st.floats(1e-9, 1e3))
def test_the_distance_is_measured_time_over_attainable_time(
    work: LayerWork, roof: Roof, seconds: float
) -> None:
    point = place(work, seconds, roof)
    if point.attainable:
        assert point.distance == seconds / point.attainable
    else:
        assert point.distance is None


ROOF = Roof(
    name="device", peaks={Dtype.FP32: 1e12, Dtype.INT8: 4e12}, bandwidth=1e11, source="measured"
)
#: One layer that is bound by memory, one that is bound by compute, and one without products.
WORK = ModelWork(
    batch=1,
    layers=(
        LayerWork(name="fc", kind=Kind.LINEAR, macs=10**6, read=10**3, weights=10**6, written=10),
        LayerWork(
            name="conv", kind=Kind.CONV, macs=10**9, read=10**6, weights=10**4, written=10**6
        ),
        LayerWork(name="relu", kind=Kind.RELU, read=10**6, written=10**6),
    ),
)


def test_layers_bound_by_memory_gain_by_bytes_and_others_by_products() -> None:
    found = roofline(WORK, ROOF)
    by_name = {point.name: point for point in found.points}
    assert [by_name[n].bound for n in ("fc", "conv", "relu")] == ["memory", "compute", "memory"]
    assert by_name["relu"].gains[Dtype.INT8] == pytest.approx(4.0)
    assert by_name["conv"].gains[Dtype.INT8] == pytest.approx(4.0)
    assert by_name["conv"].intensity == pytest.approx(2e9 / 8.04e6)


def test_the_gain_of_a_model_is_that_of_its_times_and_not_the_mean_of_its_layers() -> None:
    slow_int8 = Roof(
        name="device", peaks={Dtype.FP32: 1e12, Dtype.INT8: 1e12}, bandwidth=1e11, source="table"
    )
    found = roofline(WORK, slow_int8)
    seconds = {p.name: p.attainable for p in found.points}
    expected = sum(seconds.values()) / (seconds["conv"] + (seconds["fc"] + seconds["relu"]) / 4)
    assert found.gain(Dtype.INT8) == pytest.approx(expected, rel=1e-3)
    assert found.share("memory") + found.share("compute") == pytest.approx(1.0)


def test_a_roofline_is_told_as_a_table_and_as_json() -> None:
    found = roofline(WORK, ROOF, seconds={"conv": 0.004}, dtypes={"conv": Dtype.INT8})
    rows = found.table().splitlines()
    assert rows[2].startswith("conv")
    assert "int8" in rows[2]
    told = json.loads(found.to_json())
    conv = next(row for row in told["points"] if row["name"] == "conv")
    assert conv["distance"] == pytest.approx(0.004 / conv["attainable"])
    assert next(row for row in told["points"] if row["name"] == "fc")["distance"] is None


def test_a_format_without_a_peak_is_an_error_that_names_the_others() -> None:
    with pytest.raises(TargetError, match=r"no peak is known for fp8_e4m3.*fp32, int8"):
        place(WORK.layers[0], None, ROOF, Dtype.FP8_E4M3)


@pytest.mark.parametrize("peaks", [{}, {Dtype.FP32: 0.0}, {Dtype.FP32: float("nan")}])
def test_a_roof_without_a_peak_is_refused(peaks: dict[Dtype, float]) -> None:
    with pytest.raises(ValueError, match="device"):
        Roof(name="device", peaks=peaks, bandwidth=1.0, source="table")


def test_a_measured_time_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        place(WORK.layers[0], 0.0, ROOF)


@pytest.mark.parametrize("peak", PEAKS, ids=lambda peak: peak.name)
def test_the_table_fits_what_the_chips_are_known_to_multiply(peak: Peak) -> None:
    chip = Gpu.of(re.sub(r" (SXM|PCIe)| \d+GB", "", peak.name)).chip
    assert chip is not None
    assert all(chip.has(format) for format in peak.tera)
    assert str(peak.source).startswith("NVIDIA")


def test_no_figure_of_the_table_is_one_with_sparsity() -> None:
    """Dense INT8 is twice FP16 in every tensor core; on GeForce sums in fp32 halve FP16 again."""
    for peak in PEAKS:
        tera = {str(format): value for format, value in peak.tera.items()}
        if "fp16" in tera:
            times = 4.0 if peak.name.startswith("RTX") else 2.0
            assert tera["int8"] / tera["fp16"] == pytest.approx(times, rel=0.02), peak.name


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_a_driver_s_name_finds_its_own_row_or_none(name: str, product: str | None) -> None:
    found = peak_of(name)
    assert (found.name if found else None) == product


def test_a_gpu_that_is_not_in_the_table_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(TargetError, match=r"GTX 1080.*choose of: T4"):
        roof_from_table("GTX 1080")


def test_a_processor_is_measured_on_the_threads_that_are_asked_for() -> None:
    before = torch.get_num_threads()
    assert measure_roof("cpu", threads=1).notes[0] == "1 threads"
    assert measure_roof("cpu", threads=before + 1).notes[0] == f"{before + 1} threads"
    assert torch.get_num_threads() == before


def test_this_processor_s_roof_is_as_fast_as_its_own_product() -> None:
    roof = measure_roof("cpu")
    assert {Dtype.FP32, Dtype.INT8} <= set(roof.peaks)
    assert roof.source == "measured"
    left, right = torch.rand(2, 512, 512)
    left @ right
    begin = time.perf_counter()
    for _ in range(5):
        left @ right
    own = 5 * 2 * 512**3 / (time.perf_counter() - begin)
    # Loosely: other work may share the processor. A wrong unit or power would be a thousand.
    assert 0.05 < roof.peaks[Dtype.FP32] / own < 20
    assert 1e8 < roof.bandwidth < 1e13


@pytest.mark.gpu
def test_a_gpu_is_measured_under_its_data_sheet() -> None:
    roof = measure_roof("cuda")
    name = torch.cuda.get_device_name()
    assert roof.bandwidth > 1e10
    assert roof.peaks[Dtype.FP16] > roof.peaks[Dtype.FP32]
    if peak_of(name) is not None:
        sheet = roof_from_table(name)
        assert roof.bandwidth < 1.05 * sheet.bandwidth
        assert all(roof.peaks[d] < 1.1 * p for d, p in sheet.peaks.items() if d in roof.peaks)


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TargetError, match="only cpu and cuda"):
        measure_roof("meta")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_roofline_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"roofline{suffix}"
    save_roofline(roofline(WORK, ROOF, seconds={"conv": 0.004}), path)
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_a_model_without_products_has_no_picture(tmp_path: Path) -> None:
    only = ModelWork(batch=1, layers=WORK.layers[2:])
    with pytest.raises(ExportError, match="nothing to draw"):
        save_roofline(roofline(only, ROOF), tmp_path / "roofline.png")
