"""Pictures of histograms: that they draw what was seen, and lose no file."""

from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from quantkit import histogram
from quantkit.analysis.calibrators import TensorComparison, compare_observed, compared_and_kept
from quantkit.analysis.pictures import bars, picture, write_pictures
from quantkit.calibrators.mse import MSE
from quantkit.errors import ExportError, MissingDependencyError
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def observed(
    x: Tensor, spec: QuantSpec | None = None, name: str = "conv1/relu"
) -> tuple[Observer, TensorComparison]:
    spec = spec or QuantSpec()
    observer = Observer(spec, MSE(), name=name, channels=1 if spec.axis is None else x.shape[1])
    found, kept = compared_and_kept([observer])
    observer.keep(kept)
    observer(x)
    return observer, compare_observed([observer], found, len(x)).tensors[0]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


KINDS = {
    "two-sided": normal(5000),
    "relu": torch.relu(normal(5000)),
    "negative": -normal(5000).abs(),
    "heavy tail": normal(5000) / normal(2, 5000)[1].abs(),
    "all zero": torch.zeros(50),
    "one value": torch.full((50,), 3.5),
    "tiny": normal(500) * 1e-30,
    "huge": normal(500) * 1e35,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_any_tensor_can_be_drawn(kind: str, symmetric: bool) -> None:
    spec = QuantSpec(dtype="int8" if symmetric else "uint8", symmetric=symmetric)
    drawn = Image.open(io.BytesIO(picture(*observed(KINDS[kind], spec))))
    assert drawn.format == "PNG"
    assert drawn.width > 800
    assert len(np.unique(np.asarray(drawn.convert("L")))) > 10  # not a blank page


def test_a_tensor_with_a_scale_per_channel_is_drawn_as_one() -> None:
    x = normal(100, 4) * torch.tensor([1.0, 10.0, 100.0, 1000.0])
    observer, comparison = observed(x, QuantSpec(axis=1))
    assert picture(observer, comparison)[1:4] == b"PNG"
    state = observer.state
    assert int(bars(state["counts"], state["exponent"]).counts.sum()) == x.numel()


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.integers(3, 50),
)
def test_every_sample_is_in_one_bar_and_in_the_right_one(values: list[float], most: int) -> None:
    x = torch.tensor(values)
    counts = torch.zeros(1, 128, dtype=torch.int64)
    exponent = torch.full((1,), histogram.FINEST, dtype=torch.int32)
    histogram.add_(counts, exponent, x.unsqueeze(0), x.abs().max().reshape(1))
    found = bars(counts, exponent, most)
    assert len(found.counts) <= most
    assert len(found.edges) == len(found.counts) + 1
    assert bool((found.edges.diff() > 0).all())
    # Away from the edges, where rounding decides, numpy counts the same.
    expected, _ = np.histogram(x.double().numpy(), found.edges.numpy())
    on_edge = int(torch.isin(x.double(), found.edges).sum())
    assert int(found.counts.sum()) == len(values)
    assert int(np.abs(expected - found.counts.numpy()).sum()) <= 2 * on_edge


class Texts:
    """The labels of a picture while it is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.figure import Figure

        self.figures: list[Any] = []
        save = Figure.savefig

        def saving(figure: Figure, *args: Any, **options: Any) -> None:
            self.figures.append(figure)
            save(figure, *args, **options)

        monkeypatch.setattr(Figure, "savefig", saving)


def test_every_calibrator_has_its_lines_and_a_label_with_its_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = Texts(monkeypatch)
    observer, comparison = observed(KINDS["two-sided"])
    picture(observer, comparison)
    (axes,) = texts.figures[0].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    for chosen in comparison.ranges:
        (label,) = [text for text in labels if text.split()[0] == chosen.calibrator]
        assert f"{chosen.sqnr:.1f} dB" in label
        assert ("(best)" in label) == (chosen == comparison.best)
        drawn = {float(line.get_xdata()[0]) for line in axes.lines}
        assert {chosen.low, chosen.high} <= drawn
    styles = {(line.get_color(), str(line.get_linestyle())) for line in axes.lines}
    assert len(styles) == len(comparison.ranges)
    assert axes.get_xlabel()
    assert "5,000" in axes.get_ylabel()
    assert "conv1/relu" in axes.get_title(loc="left")


@pytest.mark.parametrize("kind", ["two-sided", "heavy tail"])
def test_no_label_overlaps_another_or_the_bars(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(monkeypatch)
    picture(*observed(KINDS[kind], name="a.long.name." * 20))
    figure = texts.figures[0]
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.overlaps(axes.get_window_extent()) for box in boxes)
    width, height = figure.canvas.get_width_height()
    shown = [*boxes, axes.title.get_window_extent(), axes._left_title.get_window_extent()]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y1 <= height for box in shown)


def test_a_picture_a_tensor_is_written_with_names_that_files_can_have(tmp_path: Path) -> None:
    pairs = [observed(normal(100), name=name) for name in ("a/b", "a:b", "../c", "")]
    observers, comparisons = zip(*pairs, strict=True)
    folder = tmp_path / "pictures"
    written = write_pictures(folder, observers, comparisons)
    assert len(set(written)) == 4
    assert sorted(folder.iterdir()) == sorted(written)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_picture_that_cannot_be_drawn_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, comparison = observed(normal(100))
    (path,) = write_pictures(tmp_path, [observer], [comparison])
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ExportError, match="No space left"):
        write_pictures(tmp_path, [observer], [comparison])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be made"):
        write_pictures(tmp_path / "no" / "pictures", [], [])


def test_without_matplotlib_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **options)

    pair = observed(normal(100))
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=r'pip install "quantkit\[plots\]"'):
        picture(*pair)


def test_drawing_leaves_no_state_of_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # of other tests
    picture(*observed(normal(100)))
    assert "matplotlib.pyplot" not in sys.modules
