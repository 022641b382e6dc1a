"""What a calibration cache was made for: kept beside it, and checked before it is used again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.errors import ModelFileError
from quantkit.files import replacing
from quantkit.tensorrt.cache import CalibrationCache, read_cache
from quantkit.tensorrt.fingerprint import Fingerprint


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """The file beside a cache (``<cache>.json``), which itself stays as TensorRT wrote it.

    Attributes:
        fingerprint: of the float model whose tensors the cache names.
        algorithm: of the calibrator, such as ``EntropyCalibration2``.
        tensorrt: what wrote the cache.
        data: what it was calibrated with, in words.
        batches: how many of them; ``None`` where that was not counted.
        sha256: of the cache itself, so that a cache put in its place is noticed.
    """

    fingerprint: Fingerprint
    algorithm: str
    tensorrt: str
    data: str
    batches: int | None
    sha256: str

    @staticmethod
    def path(cache: Path) -> Path:
        """Where the record of a cache lies."""
        return cache.with_name(f"{cache.name}.json")

    @classmethod
    def read(cls, cache: Path) -> CacheRecord | None:
        """The record of a cache, if it has one.

        Raises:
            ModelFileError: it is there and cannot be understood.
        """
        path = cls.path(cache)
        try:
            content = json.loads(path.read_bytes())
            fingerprint = Fingerprint(**content.pop("fingerprint"))
            return cls(fingerprint=fingerprint, **content)
        except FileNotFoundError:
            return None
        except (
            OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
        ) as error:  # fmt: skip
            raise ModelFileError(
                f"{path}: not the record of a calibration cache ({error}); delete it and {cache} "
                "to calibrate again"
            ) from error

    def write(self, cache: Path) -> None:
        """Put the record beside its cache, whole or not at all."""
        with replacing(self.path(cache)) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class CacheFile:
    """The cache of one model and one algorithm, in a file.

    Attributes:
        path: of the cache.
        fingerprint: of the model that is to be built.
        algorithm: of the calibrator that is to read it.
        trusted: take it whatever it was made for.
    """

    path: Path
    fingerprint: Fingerprint
    algorithm: str
    trusted: bool = False

    def load(self) -> bytes | None:
        """The cache as it stands in the file; ``None`` where there is none yet.

        Raises:
            ModelFileError: it is malformed, or was made for something else.
        """
        if not self.path.exists():
            return None
        cache = read_cache(self.path)
        text = self.path.read_bytes()
        reasons = [] if self.trusted else self._reasons(cache, text)
        if reasons:
            raise ModelFileError(
                f"{self.path} is refused: {'; '.join(reasons)}. Delete it, or name another file, "
                "to calibrate again; or say that it fits (--trust-cache, trust_cache=True)"
            )
        return text

    def save(self, text: bytes, batches: int | None, *, tensorrt: str, data: str) -> None:
        """Write what TensorRT found, and then what it was found for.

        In this order: a cache without its record is refused, never taken for another's.

        Raises:
            ExportError: it cannot be written.
        """
        with replacing(self.path) as temporary:
            temporary.write_bytes(text)
        record = CacheRecord(
            fingerprint=self.fingerprint,
            algorithm=self.algorithm,
            tensorrt=tensorrt,
            data=data,
            batches=batches,
            sha256=hashlib.sha256(text).hexdigest(),
        )
        record.write(self.path)

    def _reasons(self, cache: CalibrationCache, text: bytes) -> list[str]:
        """Why the cache is not one for this model and algorithm."""
        found = []
        if cache.algorithm != self.algorithm:
            found.append(f"its header says {cache.algorithm}, the calibrator is {self.algorithm}")
        record = CacheRecord.read(self.path)
        if record is None:
            return [*found, f"nothing tells its model ({CacheRecord.path(self.path)} is missing)"]
        if record.sha256 != hashlib.sha256(text).hexdigest():
            found.append("it was changed after its record was written")
        differing = record.fingerprint.differences(self.fingerprint)
        if differing:
            made = f"it was made for a model with {' and '.join(f'other {d}' for d in differing)}"
            found.append(made if differing != ["weights"] else f"{made} of the same graph")
        return found


def require_own(cache: Path, model: Path) -> None:
    """Refuse a cache whose record tells of another model, or of other contents; it may have none.

    Raises:
        ModelFileError: it is refused, or a file cannot be read.
    """
    record = CacheRecord.read(cache)
    if record is None:
        return
    fits = "say that it fits (--trust-cache, trust_cache=True)"
    differing = record.fingerprint.differences(Fingerprint.of(model))
    if differing:
        raise ModelFileError(
            f"{cache}: made for another model than {model}: with {' and '.join(differing)} that "
            f"differ; give the file that it was made for, or {fits}"
        )
    read_cache(cache)  # what is wrong with a damaged one says more than that it was changed
    if record.sha256 != hashlib.sha256(cache.read_bytes()).hexdigest():
        raise ModelFileError(
            f"{cache}: changed after {CacheRecord.path(cache)} was written; restore it, or {fits}"
        )


def record_cache(cache: Path | str, model: Path | str, *, data: str = "not told") -> None:
    """Say beside a cache which float ONNX file it is for: ``build`` takes it for that one alone.

    Without a record a cache is refused, unless it is trusted. Only its maker knows that it fits.

    Args:
        cache: a file that TensorRT or ``write_cache`` wrote.
        model: the ONNX file whose tensors it names.
        data: what it was calibrated with, in words.

    Raises:
        ModelFileError: a file cannot be read.
        ExportError: the record cannot be written.
    """
    path = Path(cache)
    read = read_cache(path)
    CacheRecord(
        fingerprint=Fingerprint.of(Path(model)),
        algorithm=read.algorithm,
        tensorrt=read.version,
        data=data,
        batches=None,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    ).write(path)
