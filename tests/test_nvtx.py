"""Ranges of phases and modules, with a recorder in NVTX's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from quantkit import nvtx
from quantkit.profiling import phases
from quantkit.workflow import quantize
from small_models import ResNet


class Recorder:
    """Keeps what was begun and ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.depth = 0

    def push(self, name: str) -> None:
        """Begin a range."""
        self.seen.append(f"{'.' * self.depth}{name}")
        self.depth += 1

    def pop(self) -> None:
        """End one."""
        self.depth -= 1


class Failing(nn.Module):
    """Fails in its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Never returns."""
        raise ArithmeticError("as planned")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(nvtx, "found_marker", lambda: made)
    return made


def test_each_module_is_a_range_inside_that_of_its_parent() -> None:
    recorder, net = Recorder(), nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    with nvtx.annotate(net, recorder):
        net(torch.zeros(1, 2))
    assert recorder.seen == ["Sequential", ".0 (Linear)", ".1 (Sequential)", "..1.0 (ReLU)"]
    assert recorder.depth == 0


def test_annotations_leave_no_hooks_behind() -> None:
    recorder, net = Recorder(), nn.Sequential(nn.Linear(2, 2))
    with nvtx.annotate(net, recorder):
        pass
    net(torch.zeros(1, 2))
    assert recorder.seen == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_forward_that_fails_ends_its_range() -> None:
    recorder, net = Recorder(), nn.Sequential(nn.ReLU(), Failing())
    with nvtx.annotate(net, recorder), pytest.raises(ArithmeticError):
        net(torch.zeros(1))
    assert recorder.depth == 0


def test_a_range_of_a_phase_ends_where_the_phase_fails(recorder: Recorder) -> None:
    with pytest.raises(ArithmeticError), nvtx.phase("calibrate"):
        raise ArithmeticError
    assert (recorder.seen, recorder.depth) == (["quantkit: calibrate"], 0)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has NVTX")
def test_without_nvtx_nothing_is_annotated_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "_has_package", lambda: False)
    net = nn.Linear(2, 2)
    assert not nvtx.available()
    with nvtx.annotate(net):
        assert not net._forward_hooks


def test_listeners_hear_of_phases_only_inside_their_block() -> None:
    heard: list[str] = []

    @contextmanager
    def listener(name: str) -> Iterator[None]:
        heard.append(name)
        yield

    with nvtx.listening(listener), nvtx.phase("one"):
        pass
    with nvtx.phase("two"):
        pass
    assert heard == ["one"]


def test_quantize_announces_its_phases_in_order(recorder: Recorder) -> None:
    model = ResNet().eval()
    with phases.record() as recorded:
        quantize(model, calibration=[model.inputs(4, seed) for seed in range(2)])
    expected = ["capture", "passes", "plan", "calibrate", "round", "correct"]
    assert [name.strip(".") for name in recorder.seen] == [f"quantkit: {n}" for n in expected]
    assert [peak.name for peak in recorded.peaks] == expected
    assert all(p.peak >= max(p.before, p.after) > 0 for p in recorded.peaks)
