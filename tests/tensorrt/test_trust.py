"""Engines are code: only those that were built here are read, or those that are vouched for."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from quantkit.errors import ModelFileError, TargetError
from quantkit.tensorrt import trust

DATA = b"an engine"
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(trust.STATE, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "some.engine"
    path.write_bytes(DATA)
    return path


def test_what_was_built_here_is_read_wherever_it_lies(state: Path, engine: Path) -> None:
    trust.remember(SHA, {"built_by": "tensorrt 10.13.3"})
    assert trust.read_trusted(engine, trusted=False) == DATA
    moved = engine.rename(engine.with_name("moved.plan"))
    assert trust.read_trusted(moved, trusted=False) == DATA
    (record,) = (state / "engines").iterdir()
    assert json.loads(record.read_text())["built_by"] == "tensorrt 10.13.3"


def test_what_nobody_vouches_for_is_not_read(state: Path, engine: Path) -> None:
    with pytest.raises(TargetError) as raised:
        trust.read_trusted(engine, trusted=False)
    for part in (str(engine), "no record says that it was built here", "trust_engine=True"):
        assert part in str(raised.value)
    assert trust.read_trusted(engine, trusted=True) == DATA
    assert not state.exists()  # to vouch for one now is not to have built it


def test_one_byte_makes_it_another_engine(state: Path, engine: Path) -> None:
    trust.remember(SHA, {})
    engine.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(TargetError, match="is not loaded"):
        trust.read_trusted(engine, trusted=False)


def test_a_file_that_is_not_there_is_told(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.engine: cannot be read"):
        trust.read_trusted(tmp_path / "none.engine", trusted=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_the_records_are_the_users_own(state: Path) -> None:
    trust.remember(SHA, {})
    assert (state / "engines").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({trust.STATE: "/named", "XDG_STATE_HOME": "/xdg"}, Path("/named")),
        ({"XDG_STATE_HOME": "/xdg"}, Path("/xdg/quantkit")),
        ({"HOME": "/home/me"}, Path("/home/me/.local/state/quantkit")),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another folder")
def test_where_the_records_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Path
) -> None:
    for name in (trust.STATE, "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert trust.state_folder() == expected


def test_a_file_is_hashed_as_its_bytes_are(engine: Path) -> None:
    assert trust.hash_file(engine) == SHA
