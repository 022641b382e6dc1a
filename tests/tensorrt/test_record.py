"""What a calibration cache was made for."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_models import saved, small_net

from quantkit.errors import ModelFileError
from quantkit.tensorrt.cache import CalibrationCache, write_cache
from quantkit.tensorrt.fingerprint import Fingerprint
from quantkit.tensorrt.record import CacheFile, CacheRecord, record_cache

CACHE = CalibrationCache.from_ranges({"image": 2.0})


def cache_file(folder: Path, model: Path) -> CacheFile:
    path = folder / "some.cache"
    return CacheFile(path=path, fingerprint=Fingerprint.of(model), algorithm=CACHE.algorithm)


def test_a_recorded_cache_is_taken_for_its_model_and_no_other(tmp_path: Path) -> None:
    model = saved(small_net(), tmp_path / "float.onnx")
    other = saved(small_net(batch=2), tmp_path / "other.onnx")
    write_cache(tmp_path / "some.cache", CACHE)
    with pytest.raises(ModelFileError, match="nothing tells its model"):
        cache_file(tmp_path, model).load()

    record_cache(tmp_path / "some.cache", model, data="512 images")

    assert cache_file(tmp_path, model).load() == CACHE.format().encode()
    with pytest.raises(ModelFileError, match="made for a model with other graph"):
        cache_file(tmp_path, other).load()
    record = CacheRecord.read(tmp_path / "some.cache")
    assert record is not None
    assert (record.data, record.batches) == ("512 images", None)


def test_a_cache_that_changed_after_its_record_is_refused(tmp_path: Path) -> None:
    model = saved(small_net(), tmp_path / "float.onnx")
    write_cache(tmp_path / "some.cache", CACHE)
    record_cache(tmp_path / "some.cache", model)
    write_cache(tmp_path / "some.cache", CalibrationCache.from_ranges({"image": 3.0}))
    with pytest.raises(ModelFileError, match="changed after its record was written"):
        cache_file(tmp_path, model).load()


def test_only_a_cache_can_be_recorded(tmp_path: Path) -> None:
    model = saved(small_net(), tmp_path / "float.onnx")
    with pytest.raises(ModelFileError, match="cannot be read"):
        record_cache(tmp_path / "absent.cache", model)
    assert not CacheRecord.path(tmp_path / "absent.cache").exists()


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"fingerprint": 3}', "[" * 100_000])
def test_a_record_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    CacheRecord.path(tmp_path / "some.cache").write_text(text)
    with pytest.raises(ModelFileError, match="not the record of a calibration cache"):
        CacheRecord.read(tmp_path / "some.cache")
