"""What lies in a ``.pt2`` file, found out before any of it is loaded.

``torch.export.load`` unpickles what a file marks as pickled, loads native code that lies in it,
takes any path below ``torch`` for an operator, and evaluates the expressions of its shapes. So a
file is read here first, as the zip of JSON and raw bytes that it is, and one that brings code is
refused. PyTorch promises no safety for hostile files; this closes the ways in that are known.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import ModelFileError

#: Folders of the archive (torch/csrc/export/pt2_archive_constants.h), behind its root.
_MODELS, _EXTRA, _COMPILED = "models/", "extra/", "data/aotinductor/"
_SAMPLES, _PAYLOADS = "data/sample_inputs/", ("data/weights/", "data/constants/")

#: What the nodes of an exported graph may call.
_TARGETS = re.compile(
    r"torch\.ops(\.\w+){2,3}|_operator\.\w+|math\.\w+|torch\._?sym_\w+|torch\.sym_\w+"
)
#: What functions the sizes in a file may be computed with.
_FUNCTIONS = re.compile(
    r"Abs|Add|And|BitwiseFn_bitwise_and|BitwiseFn_bitwise_or|CeilDiv|CeilToInt|CleanDiv|Eq|"
    r"Equality|Float|FloatPow|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan|Gt|Identity|"
    r"IntTrueDiv|Integer|LShift|Le|LessThan|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|"
    r"Piecewise|Pow|PowByNatural|PythonMod|RShift|Rational|RoundDecimal|RoundToInt|"
    r"StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt|Unequality|Where|"
    r"ceiling|floor"
)
#: Operators that only quantized programs call, of PyTorch and of torchao.
_QUANTIZED = ("torch.ops.quantized_decomposed.", "torch.ops.torchao.", "torch.ops.quantkit.")
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_EXPRESSION = re.compile(r"[\w\s(),+*/%<>=!&|~.-]*")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ``.pt2`` file's table of contents, and its small texts.

    Attributes:
        compiled: it is a package of AOTInductor: native code.
        extra: what was saved beside the program, by name.
        operators: what the nodes of its graphs call.
    """

    compiled: bool
    extra: dict[str, str]
    operators: frozenset[str]

    @property
    def quantized(self) -> bool:
        """Whether Q/DQ stands in the program, whoever wrote it."""
        written = any(name.startswith(_QUANTIZED) for name in self.operators)
        return written or "quantkit.plan" in self.extra


def read_archive(path: Path) -> Archive:
    """What a file holds; nothing of it runs.

    Raises:
        ModelFileError: it is missing, is no such archive, or a program in it brings code.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(path, _Zip(file))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; give a .pt2 file") from error
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{path}: not a program that torch can read ({detail}); save it with "
            "torch.export.save of the same torch"
        ) from error


class _Zip:
    """The entries of an archive without its root folder, which every writer names otherwise."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self._names = {name.partition("/")[2]: name for name in file.namelist()}

    def under(self, folder: str) -> list[str]:
        return [name for name in self._names if name.startswith(folder)]

    def bytes(self, name: str) -> bytes:
        return self._file.read(self._names[name])

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))


def _read(path: Path, file: _Zip) -> Archive:
    models = file.under(_MODELS)
    compiled = file.under(_COMPILED)
    if compiled and not models:
        return Archive(compiled=True, extra={}, operators=frozenset())
    if compiled:
        raise _brings_code(path, f"native code ({compiled[0]})")
    if not models:
        raise ValueError("it holds no program in the form of torch 2.9 or later")
    for folder in _PAYLOADS:
        _require_raw(path, file, folder)
    for name in file.under(_SAMPLES):
        _require_tensors(path, file.bytes(name))
    operators: set[str] = set()
    for name in models:
        operators |= _calls(path, file.json(name))
    texts = {name.removeprefix(_EXTRA): file.bytes(name) for name in file.under(_EXTRA)}
    extra = {name: text.decode("utf-8", "replace") for name, text in texts.items()}
    return Archive(compiled=False, extra=extra, operators=frozenset(operators))


def _brings_code(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: brings {what}, which loading would run; export the model again, with plain "
        "tensors, by torch.export.save"
    )


def _require_raw(path: Path, file: _Zip, folder: str) -> None:
    """Refuse a folder of tensors in which one is a pickle."""
    for name in file.under(folder):
        if name.endswith(".pt"):  # as before torch 2.9
            _require_tensors(path, file.bytes(name))
        if not name.endswith("config.json"):
            continue
        for tensor, entry in file.json(name)["config"].items():
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise _brings_code(path, f"a pickle ({tensor})")


def _require_tensors(path: Path, data: bytes) -> None:
    """Refuse what torch cannot load as tensors and containers alone; it would then unpickle."""
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _brings_code(path, "a pickle of more than tensors") from error


def _calls(path: Path, model: Any) -> set[str]:
    """What the nodes call, where it is all known; sizes are checked on the way."""
    calls: set[str] = set()
    for key, value in _items(model):
        if key == "target" and isinstance(value, str):
            if not _TARGETS.fullmatch(value):
                raise _brings_code(path, f"a call of {value[:60]!r}")
            calls.add(value)
        if key == "expr_str" and isinstance(value, str):
            _require_arithmetic(path, value)
    return calls


def _require_arithmetic(path: Path, text: str) -> None:
    bare = _SYMBOL.sub("s", text)
    called = re.findall(r"([A-Za-z_]\w*)\s*\(", bare)
    dotted = re.search(r"\.\s*[A-Za-z_]", bare)
    known = all(_FUNCTIONS.fullmatch(name) for name in called)
    if not _EXPRESSION.fullmatch(bare) or dotted or "__" in bare or not known:
        raise _brings_code(path, f"an expression that is no arithmetic ({text[:60]!r})")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _items(item)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item)
