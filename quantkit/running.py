"""A float model with observers on its tensors, run over one process's share of the data."""

from __future__ import annotations

import glob
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from quantkit import distributed, statistics_file
from quantkit.batches import Call, as_batches, samples_of
from quantkit.data import Data, DataSpec
from quantkit.errors import DataError, ModelFileError
from quantkit.observer import Observer
from quantkit.progress import track

T = TypeVar("T")

#: A model runs so many samples at a time, whatever batches it is given: a mean over batches'
#: ranges then does not depend on their size, and memory is that of few samples.
SAMPLES_AT_A_TIME = 8


class Runner(ABC):
    """A float model with observers on its tensors."""

    @property
    @abstractmethod
    def observers(self) -> Mapping[str, Observer]:
        """The observers by the names of their tensors."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the model's weights: statistics of another model are of no use to it."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples run at a time."""

    @abstractmethod
    def calls(self, batches: Iterable[Call], first: int = 0) -> Iterator[Call]:
        """The batches, checked, as calls of ``samples`` each; ``first`` is for messages."""

    @abstractmethod
    def run(self, call: Call) -> None:
        """Let the observers see the tensors of one call."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where statistics are written while they are collected, so that a killed run can go on.

    Attributes:
        path: the file of the statistics, written when they are whole; until then each process
            keeps its own in a file beside it, so an earlier file stays while a run may still fail.
        every: parts of the data between two writes; a part is 8 samples, or as many batches of a
            data file as hold a multiple of 8.
        resume: go on from what a run that was ended has left; where nothing is left and ``path``
            is there, take that, and read no data.
    """

    path: Path
    every: int = 64
    resume: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be 1 or more, got {self.every}")

    def own(self, place: distributed.Place) -> Path:
        """The file of one process while it runs."""
        return self.path.with_name(f"{self.path.name}.{place.rank}-of-{place.world}")

    def begun(self) -> list[Path]:
        """The files that all processes of a run that was ended have left."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.*-of-*"))


class Share:
    """What one process sees of the data.

    Attributes:
        samples: how many it has seen.
    """

    def __init__(
        self,
        runner: Runner,
        calibration: Iterable[Any],
        checkpoint: Checkpoint | None,
        place: distributed.Place,
    ) -> None:
        self._runner, self._checkpoint, self._place = runner, checkpoint, place
        self._data = calibration.open() if isinstance(calibration, DataSpec) else calibration
        self._model = "" if checkpoint is None else runner.fingerprint
        self._done = self.samples = 0

    def resume(self) -> bool:
        """Read what there is to resume; whether it is whole.

        Raises:
            ModelFileError: it is of another model, of other data, or of a run on another number of
                processes, which saw other shares.
        """
        checkpoint, place = self._checkpoint, self._place
        if checkpoint is None or not checkpoint.resume:
            return False
        own, begun = checkpoint.own(place), checkpoint.begun()
        for file in begun:
            if not file.name.endswith(f"-of-{place.world}"):
                raise ModelFileError(
                    f"{file}: begun by {file.name.rpartition('-')[2]} processes, not "
                    f"{place.world}; resume with as many, or remove the files that end alike"
                )
        file = own if begun else checkpoint.path
        if not file.exists():  # or this process was ended before its first write
            return False
        run = statistics_file.load(file, self._runner.observers, self._model, self._about)
        self._done, self.samples = run.parts or 0, run.samples
        return not begun

    def collect(self) -> None:
        """Run this process's parts of the data, from where a checkpoint ends."""
        since = 0
        for index, calls in self._parts():
            if distributed.failed_elsewhere():
                return
            for call in calls:
                self._runner.run(call)
                self.samples += samples_of(call)
            since += 1
            if self._checkpoint is not None and since == self._checkpoint.every:
                self._save(self._checkpoint.own(self._place), parts=index + 1)
                since = 0

    def finish(self, samples: int) -> None:
        """Write the statistics of all, where they are to be written."""
        self.samples = samples
        if self._checkpoint is None:
            return
        if self._place.leads:
            self._save(self._checkpoint.path)
        self._checkpoint.own(self._place).unlink(missing_ok=True)

    def _save(self, path: Path, *, parts: int | None = None) -> None:
        run = statistics_file.Run(samples=self.samples, parts=parts, data=self._about)
        statistics_file.save(path, self._runner.observers, self._model, run)

    @property
    def _part(self) -> int:
        """Batches of a data file that hold whole calls of the model."""
        size = self._data.spec.batch_size if isinstance(self._data, Data) else 1
        return math.lcm(size, self._runner.samples) // size

    @property
    def _about(self) -> str:
        """What data these are, as far as can be told: those of a run to resume must be the same."""
        if not isinstance(self._data, Data):
            return f"batches by {self._runner.samples}"
        spec = self._data.spec
        # The folder may have moved.
        named = spec.model_copy(update={"source": Path(spec.source).name})
        return f"{named.model_dump_json()} by {self._runner.samples}"

    def _wanted(self, part: int) -> bool:
        return part >= self._done and self._place.owns(part)

    def _parts(self) -> Iterator[tuple[int, Iterator[Call]]]:
        """This process's parts of the data with their numbers; others are decoded only if need be.

        A `Data` is read by whole parts: what is not wanted of it is never decoded.
        """
        data, part = self._data, self._part
        if not isinstance(data, Data):
            total = len(data) if isinstance(data, Sized) else None
            tracked = self._track(as_batches(data), total)
            for index, call in enumerate(self._runner.calls(tracked)):
                if self._wanted(index):
                    yield index, iter([call])
            return
        if data.rows == 0:
            raise DataError(f"{data.spec.source} has no row; give data with at least one")
        known = data.batch_count
        total = None if known is None else sum(self._wanted(i // part) for i in range(known))
        numbered = data.numbered(lambda index: self._wanted(index // part))
        groups = groupby(self._track(numbered, total), key=lambda pair: pair[0] // part)
        for index, group in groups:
            calls = as_batches((batch for _, batch in group), first=index * part)
            yield index, self._runner.calls(calls, first=index * part)

    def _track(self, items: Iterable[T], total: int | None) -> Iterable[T]:
        """A bar, on the process that leads."""
        return track(items, "calibrating", total=total) if self._place.leads else items
