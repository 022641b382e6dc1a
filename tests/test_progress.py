"""A bar where somebody watches, and silence where nobody does."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import pytest

from quantkit.progress import track

Watching: TypeAlias = Callable[[], AbstractContextManager[object]]


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


class Counter:
    """An endless source that tells how many items were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken


@contextmanager
def watched() -> Iterator[Terminal]:
    """A terminal in the place of standard error; within a test, as pytest changes it between."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        shown = Terminal()
        patch.setattr(sys, "stderr", shown)
        yield shown


WATCHED = pytest.mark.parametrize("watching", [nullcontext, watched])


def test_without_a_terminal_the_items_pass_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert list(track([1, 2, 3], "calibrating")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_bar_counts_to_the_end() -> None:
    with watched() as terminal:
        assert list(track(["a", "b", "c"], "calibrating")) == ["a", "b", "c"]
    assert "calibrating" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_the_total_can_be_told_where_a_length_is_not_known() -> None:
    with watched() as terminal:
        assert list(track(iter(range(4)), "calibrating", total=4)) == [0, 1, 2, 3]
    assert "4/4" in terminal.getvalue()


def test_an_unknown_total_is_no_error() -> None:
    with watched() as terminal:
        assert list(track(iter(range(2)), "building")) == [0, 1]
    assert "building" in terminal.getvalue()


@WATCHED
def test_items_are_taken_one_at_a_time(watching: Watching) -> None:
    source = Counter()
    with watching():
        tracked = track(source, "calibrating")
        assert [next(tracked) for _ in range(3)] == [1, 2, 3]
        assert source.taken == 3
        tracked.close()  # type: ignore[attr-defined]


@WATCHED
def test_an_error_of_the_items_passes_through(watching: Watching) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("row 2 is broken")

    with watching(), pytest.raises(ValueError, match="row 2 is broken"):
        list(track(broken(), "calibrating"))
