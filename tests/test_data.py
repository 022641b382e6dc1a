"""Data is declared in YAML or is any iterable, streams, and is refused where it is wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from quantkit.batches import as_batches, bind_inputs, check_batch
from quantkit.data import DataSpec, load_data_spec
from quantkit.errors import DataError
from quantkit.transform import Transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the home directory, and nothing is read from a run before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with every image that Pillow opens."""
    opened: list[object] = []
    real = PIL.Image.open

    def counted(*args: Any, **kwargs: Any) -> PIL.Image.Image:
        opened.append(args[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(PIL.Image, "open", counted)
    return opened


def pixels(rows: int = 6, height: int = 8, width: int = 10) -> np.ndarray:
    shape = (rows, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def image_parquet(path: Path, encoded: list[bytes]) -> Path:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {
        "image": [{"bytes": b, "path": None} for b in encoded],
        "label": [i % 2 for i in range(len(encoded))],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def spec(source: Path, **keys: Any) -> DataSpec:
    keys = {"inputs": {"x": {"column": "image", "mode": "RGB", "scale": 255}}} | keys
    return DataSpec.model_validate({"source": str(source), **keys})


# ---- what a transform does


def test_efficientnet_lite0_pixels_become_minus_127_to_128_over_128() -> None:
    image = np.array([[[0, 127, 255]]], np.uint8)
    declared = {"mode": "RGB", "scale": 1, "mean": 127, "std": 128}
    read = Transform.model_validate(declared).read(image)
    assert read.flatten().tolist() == [-127 / 128, 0.0, 1.0]


def test_the_shorter_side_is_resized_and_the_centre_is_cropped() -> None:
    image = PIL.Image.fromarray(pixels(1, 40, 61)[0])
    transform = Transform.model_validate(
        {"mode": "RGB", "resize": 20, "crop": [16, 18], "layout": "nhwc", "dtype": "uint8"}
    )
    box = (6, 2, 6 + 18, 2 + 16)  # 61 * 20 // 40 is 30 wide
    expected = image.resize((30, 20), PIL.Image.Resampling.BILINEAR).crop(box)
    np.testing.assert_array_equal(transform.read(np.asarray(image)), np.asarray(expected))


def test_two_numbers_resize_to_height_and_width() -> None:
    transform = Transform.model_validate({"mode": "RGB", "resize": [5, 7]})
    assert transform.read(pixels(1)[0]).shape == (3, 5, 7)


def test_grey_images_keep_one_channel() -> None:
    image = pixels(1)[0, :, :, :1]
    read = Transform(mode="L", scale=255).read(image)
    np.testing.assert_array_equal(read.numpy(), image.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layout_orders_the_dimensions_and_memory_is_contiguous(layout: str) -> None:
    image = pixels(1)[0]
    read = Transform.model_validate({"mode": "RGB", "layout": layout}).read(image)
    back = read.permute(1, 2, 0) if layout == "nchw" else read
    np.testing.assert_array_equal(back.numpy(), image)
    assert read.is_contiguous()


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"crop 9x9 exceeds the image's 8x10; set resize"):
        Transform.model_validate({"mode": "RGB", "crop": 9}).read(pixels(1)[0])


def test_an_image_of_16_bits_is_refused_and_not_clipped() -> None:
    with pytest.raises(DataError, match="8 bits"):
        Transform(mode="L").read(np.full((4, 4), 40_000, np.uint16))


def test_normalised_pixels_do_not_fit_an_integer_type() -> None:
    with pytest.raises(DataError, match="do not fit uint8"):
        Transform(mode="RGB", scale=255, dtype="uint8").read(pixels(1)[0])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [([300], "uint8"), ([1.5], "int64"), ([float("nan")], "int32"), ([2], "bool")],
)
def test_numbers_that_an_integer_type_cannot_hold_are_refused(value: list[Any], dtype: Any) -> None:
    with pytest.raises(DataError, match=f"do not fit {dtype}"):
        Transform(dtype=dtype).read(value)


def test_a_scalar_of_each_row_stays_a_scalar() -> None:
    assert Transform(dtype="int64").read(7).shape == ()


def test_padding_fills_the_end_with_its_value_and_never_cuts() -> None:
    transform = Transform(dtype="int64", pad_to=3, pad_value=-1)
    assert transform.read([5]).tolist() == [5, -1, -1]
    with pytest.raises(DataError, match=r"shape \(4,\) does not fit pad_to 3"):
        transform.read([1, 2, 3, 4])


def test_a_pad_value_that_the_type_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit int64"):
        Transform(dtype="int64", pad_to=3, pad_value=0.5).read([5])


# ---- Parquet, folders, arrays, hub


def test_512_cifar_images_equal_a_plain_numpy_computation(
    assets: Path, decodes: list[object]
) -> None:
    import pyarrow.parquet

    file = assets / "cifar10_calib_512.parquet"
    if not file.is_file():
        pytest.skip(f"needs {file.name} among the assets")
    x = {"column": "image", "mode": "RGB", "scale": 255, "mean": MEAN, "std": STD}
    data = spec(file, inputs={"x": x}, label="label", batch_size=64).open()
    assert data.rows == 512
    assert data.classes is not None
    assert data.classes[3] == "cat"
    assert not decodes
    rows = pyarrow.parquet.read_table(file).to_pylist()
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    count = 0
    for index, batch in enumerate(data):
        assert len(decodes) == 64 * (index + 1)  # one batch is decoded, nothing ahead
        part = rows[64 * index : 64 * index + 64]
        with_pillow = [np.asarray(PIL.Image.open(io.BytesIO(r["image"]["bytes"]))) for r in part]
        del decodes[-64:]
        stacked = np.stack(with_pillow).astype(np.float32)
        expected = (stacked / np.float32(255) - mean) / std
        np.testing.assert_array_equal(batch.inputs["x"].numpy(), expected.transpose(0, 3, 1, 2))
        assert batch.labels is not None
        assert batch.labels.tolist() == [r["label"] for r in part]
        count += len(batch.labels)
    assert count == 512


def test_no_image_is_decoded_before_its_batch_is_due(tmp_path: Path, decodes: list[object]) -> None:
    file = image_parquet(tmp_path / "x.parquet", [png(image) for image in pixels(6)])
    batches = iter(spec(file, batch_size=2).open())
    assert len(decodes) == 0
    next(batches)
    assert len(decodes) == 2
    next(batches)
    assert len(decodes) == 4


def test_data_is_read_again_in_the_same_order(tmp_path: Path) -> None:
    file = image_parquet(tmp_path / "x.parquet", [png(image) for image in pixels(6)])
    data = spec(file, seed=3, limit=4).open()
    (once,), (again,) = list(data), list(data)
    assert torch.equal(once.inputs["x"], again.inputs["x"])
    assert data.rows == len(once.inputs["x"]) == 4


def test_a_seed_shuffles_all_rows_and_limit_takes_the_first_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    inputs = {"x": {"dtype": "int64"}}

    def read(**keys: Any) -> list[int]:
        (batch,) = spec(tmp_path / "x.npy", inputs=inputs, batch_size=100, **keys).open()
        values: list[int] = batch.inputs["x"].tolist()
        return values

    assert read() == list(range(100))
    assert read(seed=0) != read(seed=1)
    assert sorted(read(seed=0)) == list(range(100))
    assert read(seed=0, limit=7) == read(seed=0)[:7]


def shuffled(path: Path, **keys: Any) -> tuple[list[int], list[int]]:
    """Two readings of the rows of a file, shuffled; labels are the rows' numbers as well."""
    inputs = {"x": {"column": path.stem, "dtype": "int64"}}
    data = spec(path, inputs=inputs, label=path.stem, batch_size=8, **keys).open().shuffled()
    assert (data.rows, data.batch_count) == (20, 3)

    def read() -> list[int]:
        batches = list(data)
        assert [len(batch.inputs["x"]) for batch in batches] == [8, 8, 4]
        assert all(torch.equal(batch.inputs["x"], batch.labels) for batch in batches)  # type: ignore[arg-type]
        return [int(x) for batch in batches for x in batch.inputs["x"]]

    return read(), read()


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_shuffled_rows_come_once_each_in_a_new_order_each_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, np.arange(20))
    else:
        datasets.Dataset.from_dict({"x": list(range(20))}).to_parquet(str(path))
    torch.manual_seed(0)
    once, again = shuffled(path)
    assert sorted(once) == sorted(again) == list(range(20))
    assert once != again
    torch.manual_seed(0)
    assert shuffled(path) == (once, again)


def test_the_state_of_the_global_generator_repeats_a_shuffled_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    data = spec(tmp_path / "x.npy", inputs={"x": {"dtype": "int64"}}, batch_size=100).open()
    training = data.shuffled()
    list(training)
    state = torch.get_rng_state()
    (wanted,) = training
    torch.set_rng_state(state)
    (found,) = training
    assert torch.equal(found.inputs["x"], wanted.inputs["x"])
    (plain,) = data  # which shuffled left as it was
    assert plain.inputs["x"].tolist() == list(range(100))


def test_shuffling_takes_the_rows_that_limit_and_seed_have_chosen(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    keys: dict[str, Any] = {"limit": 20, "seed": 3}
    (chosen,) = spec(tmp_path / "x.npy", inputs={"x": {}}, batch_size=100, **keys).open()
    once, again = shuffled(tmp_path / "x.npy", **keys)
    assert sorted(once) == sorted(again) == sorted(chosen.inputs["x"].tolist())


def test_an_error_in_a_shuffled_row_names_its_number_in_the_source(tmp_path: Path) -> None:
    good = png(pixels(1)[0])
    file = image_parquet(tmp_path / "x.parquet", [good, good, b"torn", good])
    with pytest.raises(DataError, match="row 2, column 'image'"):
        list(spec(file).open().shuffled())


def test_a_folder_of_images_gives_classes_by_name(tmp_path: Path) -> None:
    images = pixels(4)
    for i, name in enumerate(["cat", "cat", "dog", "dog"]):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(images[i]).save(tmp_path / "photos" / name / f"{i}.png")
    data = spec(tmp_path / "photos", label="label").open()
    (batch,) = data
    assert data.classes == ("cat", "dog")
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1]
    expected = images.transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(batch.inputs["x"].numpy(), expected)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_npz_is_mapped_and_gives_several_inputs_in_the_declared_order(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    ids, mask = np.arange(12).reshape(4, 3), np.ones((4, 3), np.int32)
    score = np.array([0.0, 1.5, 2.0, 5.0])
    save(tmp_path / "x.npz", mask=mask, ids=ids, score=score, unread=np.zeros(9))
    inputs = {
        "input_ids": {"column": "ids", "dtype": "int64", "pad_to": 4},
        "attention_mask": {"column": "mask", "dtype": "int64", "pad_to": 4},
    }
    data = spec(tmp_path / "x.npz", inputs=inputs, label="score", batch_size=3).open()
    first, last = data
    assert list(first.inputs) == ["input_ids", "attention_mask"]
    assert first.inputs["input_ids"].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [6, 7, 8, 0]]
    assert last.inputs["attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert first.labels is not None
    assert first.labels.dtype == torch.float32
    row = next(iter(data._table.rows()))[1]["ids"]
    assert isinstance(row, np.memmap)


def test_images_in_an_array_file_are_cropped_as_any_image(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", pixels(2))
    x = {"column": "image", "mode": "RGB", "crop": 4}
    (batch,) = spec(tmp_path / "image.npy", inputs={"x": x}).open()
    expected = pixels(2)[:, 2:6, 3:7].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch.inputs["x"].numpy(), expected)


def test_token_lists_of_unequal_length_ask_for_padding(tmp_path: Path) -> None:
    tokens = datasets.Dataset.from_dict({"ids": [[1, 2], [3]]})
    tokens.to_parquet(str(tmp_path / "x.parquet"))
    ids: dict[str, Any] = {"dtype": "int64"}
    with pytest.raises(DataError, match=r"row 1, column 'ids': shape \(1,\).*pad_to"):
        list(spec(tmp_path / "x.parquet", inputs={"ids": ids}).open())
    padded = {"ids": ids | {"pad_to": 2}}
    (batch,) = spec(tmp_path / "x.parquet", inputs=padded).open()
    assert batch.inputs["ids"].tolist() == [[1, 2], [3, 0]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub of one dataset with two splits; records how it is asked."""
    asked: list[tuple[Any, ...]] = []
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        for i, image in enumerate(pixels(6)):
            yield {"image": {"bytes": png(image), "path": None}, "text": "", "label": i % 2}

    def load(path: str, name: object, *, data_files: object, split: object, streaming: bool) -> Any:
        asked.append((path, name, data_files, split, streaming))
        stream = datasets.IterableDataset.from_generator(rows, features=features)
        return stream if split else datasets.IterableDatasetDict(train=stream, test=stream)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_hub_name_goes_untouched_to_datasets_and_streams(
    hub: list[tuple[Any, ...]], decodes: list[object]
) -> None:
    named = DataSpec(
        source="org/pets",
        subset="small",
        split="test",
        inputs={"x": Transform(column="image", mode="RGB")},
        label="label",
        limit=5,
        batch_size=3,
    )
    data = named.open()
    assert hub == [("org/pets", "small", None, "test", True)]
    assert (data.rows, data.classes) == (None, ("cat", "dog"))
    first, last = data
    np.testing.assert_array_equal(first.inputs["x"], pixels(6)[:3].transpose(0, 3, 1, 2))
    assert last.labels is not None
    assert last.labels.tolist() == [1, 0]
    assert len(decodes) == 5


def test_a_stream_cannot_be_shuffled_for_training(hub: list[tuple[Any, ...]]) -> None:
    data = spec(Path("org/pets"), split="test", inputs={"label": {}}).open()
    with pytest.raises(DataError, match=r"org/pets: is a stream .* save it to \.parquet"):
        data.shuffled()


def test_a_shuffled_stream_gives_every_row_once_and_the_same_again(
    hub: list[tuple[Any, ...]],
) -> None:
    data = spec(Path("org/pets"), split="test", seed=0, inputs={"label": {}}).open()
    (once,), (again,) = list(data), list(data)
    assert sorted(once.inputs["label"].tolist()) == [0, 0, 0, 1, 1, 1]
    assert once.inputs["label"].tolist() != [0, 1, 0, 1, 0, 1]
    assert torch.equal(once.inputs["label"], again.inputs["label"])


def test_a_stream_that_breaks_off_is_an_error_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"x": 1}
        raise ConnectionError("reset by peer")

    features = datasets.Features({"x": datasets.Value("int64")})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(DataError, match=r"org/pets: stream broke off, reset by peer; try again"):
        list(spec(Path("org/pets"), inputs={"x": {}}).open())


def test_a_source_of_several_splits_asks_for_one(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DataError, match="org/pets: set split to one of train, test"):
        spec(Path("org/pets")).open()


def test_a_hub_that_cannot_be_reached_is_an_error_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = r"^org/none: Couldn't reach the hub; correct source or split$"
    with pytest.raises(DataError, match=message):
        spec(Path("org/none")).open()


# ---- what is wrong with a source


def test_a_corrupt_image_is_named_by_its_row(tmp_path: Path) -> None:
    whole = png(pixels(1)[0])
    file = image_parquet(tmp_path / "x.parquet", [whole, whole, whole[:60], b"no image"])
    batches = spec(file, batch_size=1).open().batches()
    next(batches), next(batches)
    with pytest.raises(DataError, match=r"row 2, column 'image': cannot decode the image"):
        next(batches)
    shuffled = spec(image_parquet(tmp_path / "y.parquet", [whole] * 9 + [b"no image"]), seed=1)
    with pytest.raises(DataError, match=r"row 9, column 'image': cannot decode"):
        list(shuffled.open())


def test_images_of_several_sizes_ask_for_resize_and_crop(tmp_path: Path) -> None:
    both = [png(pixels(1)[0]), png(pixels(1, 4, 4)[0])]
    with pytest.raises(DataError, match=r"row 1, .*shape \(3, 4, 4\) does not stack with \(3, 8"):
        list(spec(image_parquet(tmp_path / "x.parquet", both)).open())


def test_a_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    file = image_parquet(tmp_path / "x.parquet", [png(pixels(1)[0])])
    with pytest.raises(DataError, match=r"no column 'img'; there are: image, label"):
        spec(file, inputs={"img": {"mode": "RGB"}}).open()


def test_an_image_column_read_as_numbers_is_told_to_set_mode(tmp_path: Path) -> None:
    file = image_parquet(tmp_path / "x.parquet", [png(pixels(1)[0])])
    with pytest.raises(DataError, match="not numbers; for an image set mode: RGB"):
        list(spec(file, inputs={"image": {}}).open())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "no such file or folder"),
        ("x.parquet", b"text", "x.parquet: .*correct source"),
        ("x.csv", b"a,b", "neither .parquet, .npz nor .npy"),
        ("x.npz", b"text", "x.npz: .*numpy.savez"),
        ("x.npy", b"text", "x.npy: .*numpy.savez"),
        ("none.npy", None, "none.npy: no such file; correct source"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        spec(tmp_path / name).open()
    assert "\n" not in str(caught.value)


def test_an_array_file_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="objects"):
        spec(tmp_path / "image.npy").open()


def test_a_missing_column_of_an_array_file_lists_those_that_are_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=pixels(2), b=np.zeros(2))
    with pytest.raises(DataError, match=r"^\S*x\.npz: no column 'image'; there are: a, b$"):
        spec(tmp_path / "x.npz").open()


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=pixels(2), label=np.zeros(3))
    with pytest.raises(DataError, match="columns differ in rows"):
        spec(tmp_path / "x.npz", label="label").open()


# ---- the YAML file

GOOD = """
source: {source}
inputs:
  x: {{column: image, mode: RGB, resize: 256, crop: 224, scale: 1, mean: 127, std: 128}}
label: label
limit: 512
seed: 0
"""


def test_a_yaml_file_finds_its_source_beside_it(tmp_path: Path) -> None:
    image_parquet(tmp_path / "x.parquet", [png(pixels(1, 256, 256)[0])])
    (tmp_path / "calib.yaml").write_text(GOOD.format(source="x.parquet"))
    loaded = load_data_spec(tmp_path / "calib.yaml")
    assert loaded.inputs["x"].resize == (256,)
    (batch,) = loaded.open()
    assert batch.inputs["x"].shape == (1, 3, 224, 224)


def test_a_hub_name_in_yaml_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "calib.yaml").write_text(GOOD.format(source="org/pets"))
    assert load_data_spec(tmp_path / "calib.yaml").source == "org/pets"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: {x: {}}", "source: missing"),
        ("source: a\ninputs: {}", r"inputs: got \{\}; .*at least 1"),
        ("source: a\ninputs: {x: {}}\nlimits: 3", "limits: no such key; allowed: source, subset"),
        (
            "source: a\ninputs: {x: {sized: 3}}",
            "inputs.x.sized: no such key; allowed: column, mode",
        ),
        ("source: a\ninputs: {x: {}}\nlimit: 0", "limit: got 0; .*greater than 0"),
        ("source: a\ninputs: {x: {}}\nseed: true", "seed: got True; .*valid integer"),
        ("source: a\ninputs: {x: {mode: CMYK}}", "inputs.x.mode: got 'CMYK'; .*'RGB' or 'L'"),
        ("source: a\ninputs: {x: {mode: L, crop: big}}", "inputs.x.crop.0: got 'big'"),
        ("source: a\ninputs: {x: {mode: L, crop: [1, 2, 3]}}", r"inputs.x.crop: got .*at most 2"),
        ("source: a\ninputs: {x: {mode: L, mean: 1e-3}}", "inputs.x.mean.0: got '1e-3'"),
        ("source: a\ninputs: {x: {mode: RGB, mean: [1, 2]}}", "inputs.x: mean and std need 1.* 3"),
        ("source: a\ninputs: {x: {mode: L, std: 0}}", "inputs.x: std must be above 0"),
        ("source: a\ninputs: {x: {mode: L, scale: .inf}}", "inputs.x.scale: got inf; .*finite"),
        ("source: a\ninputs: {x: {crop: 3}}", "inputs.x: crop: for images only; set mode"),
        ("source: a\ninputs: {x: {mode: L, pad_to: 3}}", "inputs.x: pad_to: for numbers only"),
        ("", "the file: got None"),
        ("a: [", "give a data file in YAML"),
    ],
)
def test_a_wrong_yaml_file_is_told_by_file_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "calib.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_data_spec(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml: .*No such file"):
        load_data_spec(tmp_path / "none.yaml")


# ---- any iterable


def calls(data: object) -> list[tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
    return list(as_batches(data))


def test_tensors_arrays_tuples_and_mappings_become_calls() -> None:
    x, y = torch.ones(2, 3), np.zeros((2, 1), np.float32)
    assert torch.equal(calls([x])[0][0][0], x)
    ((args, kwargs),) = calls([(x, y)])
    assert args[1].dtype == torch.float32
    assert kwargs == {}
    ((args, kwargs),) = calls([{"a": x, "b": y}])
    assert args == ()
    assert list(kwargs) == ["a", "b"]


def test_a_data_loader_and_a_generator_are_taken_one_batch_at_a_time() -> None:
    loader = DataLoader(TensorDataset(torch.arange(6.0).reshape(6, 1)), batch_size=4)
    assert [len(args[0]) for args, _ in as_batches(loader)] == [4, 2]
    taken: list[int] = []

    def endless() -> Iterator[Tensor]:
        while True:
            taken.append(1)
            yield torch.zeros(1)

    next(as_batches(endless()))
    assert len(taken) == 1


def test_a_data_spec_gives_its_inputs_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    declared = spec(tmp_path / "x.npy", inputs={"x": {}}, batch_size=2)
    for data in (declared, declared.open()):
        assert [kwargs["x"].shape[0] for _, kwargs in as_batches(data)] == [2, 1]


def test_an_array_of_foreign_byte_order_is_taken() -> None:
    ((args, _),) = calls([np.array([1.0, 2.0], ">f4")])
    assert args[0].tolist() == [1.0, 2.0]


def test_a_read_only_array_is_copied() -> None:
    array = np.ones((1, 2), np.float32)
    array.flags.writeable = False
    ((args, _),) = calls([array])
    args[0].zero_()
    assert array.all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(2, 3), r"one Tensor, not an iterable of batches; pass \[batch\]"),
        (np.zeros((2, 3)), r"one ndarray, .*\[batch\]"),
        ({"x": torch.zeros(2)}, r"one dict, .*\[batch\]"),
        ("calib.yaml", "load_data_spec"),
        (None, "no iterable of batches"),
        ([], "no batch; pass a list"),
        (iter([]), "read only once"),
        ([()], r"no input"),
        ([torch.zeros(1), torch.zeros(0, 3)], r"batch 1, input 0 is empty, shape \(0, 3\)"),
        ([(torch.zeros(1), "text")], "batch 0, input 1 is a str"),
        ([np.array(["a"])], "batch 0, input 0 is a ndarray; pass tensors or numeric arrays"),
        ([{"x": torch.zeros(1)}, {"y": torch.zeros(1)}], "batch 1 .*'y'.* batch 0 .*'x'"),
        ([torch.zeros(1), (torch.zeros(1), torch.zeros(1))], "batch 1 has the inputs"),
        (
            [{"x": torch.zeros(2)}, {"x": torch.tensor([1.0, float("nan")])}],
            "batch 1, input 'x' holds NaN or infinity",
        ),
        ([np.array([np.inf])], "batch 0, input 0 holds NaN or infinity"),
    ],
)
def test_data_that_cannot_calibrate_is_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calls(data)


def test_a_wrong_kind_of_data_is_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError):
        as_batches(torch.zeros(2, 3))


# ---- a batch against the example inputs

EXAMPLE = torch.zeros(1, 3, 8, 8)


def test_only_dynamic_dimensions_may_differ_from_the_example() -> None:
    check_batch((torch.zeros(5, 3, 8, 8),), {}, (EXAMPLE,), {}, 0)
    wide = torch.zeros(5, 3, 8, 9)
    check_batch((wide,), {}, (EXAMPLE,), {}, 0, dynamic_dims={0, 3})
    with pytest.raises(
        DataError,
        match=r"batch 4, input 0: got float32 \(5, 3, 8, 9\), "
        r"expected float32 \(any, 3, 8, 8\)",
    ):
        check_batch((wide,), {}, (EXAMPLE,), {}, 4)
    with pytest.raises(DataError, match="expected float32"):
        check_batch((torch.zeros(5, 3, 8, 8),), {}, (EXAMPLE,), {}, 4, dynamic_dims=set())


@pytest.mark.parametrize(
    "batch", [EXAMPLE.double(), EXAMPLE[0], EXAMPLE[None], EXAMPLE.to(torch.uint8)]
)
def test_another_type_or_rank_is_refused(batch: Tensor) -> None:
    with pytest.raises(DataError, match=r"input 'x': got .* expected float32 \(any, 3, 8, 8\)"):
        check_batch((), {"x": batch}, (), {"x": EXAMPLE}, 0)


def test_labels_beside_the_inputs_are_refused() -> None:
    with pytest.raises(DataError, match=r"inputs \[0, 1\], the example .* \[0\]; .*labels"):
        check_batch((EXAMPLE, torch.zeros(1)), {}, (EXAMPLE,), {}, 0)
    with pytest.raises(DataError, match="'y'"):
        check_batch((), {"x": EXAMPLE, "y": EXAMPLE}, (), {"x": EXAMPLE}, 0)


def test_named_inputs_move_to_where_the_example_has_them() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    args, kwargs = bind_inputs((a,), {"c": c, "b": b}, ["a", "b"])
    assert args == (a, b)
    assert kwargs == {"c": c}
    assert bind_inputs((), {"c": c}, ["a"]) == ((), {"c": c})


def test_importing_data_does_not_import_datasets(root: Path) -> None:
    code = "import sys, quantkit.data; sys.exit('datasets' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
