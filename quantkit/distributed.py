"""One run on several processes, as ``torchrun`` starts them: who this is, and sums over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d

from quantkit.errors import AGREED, GroupError, is_agreed

_FAILED = "quantkit/failed"


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many.

    Example:
        >>> Place(1, 3).owns(4), Place().owns(4)
        (True, True)
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether the part of the data with this number is this process's."""
        return index % self.world == self.rank


def place() -> Place:
    """This process's place in the group, where ``torch.distributed`` is initialized."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Place()
    return Place(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def group() -> Iterator[Place]:
    """Joins the group that ``torchrun`` started this process for; a lone process has none.

    Leaves a group alone that is initialized already, and ends its own.

    Raises:
        GroupError: there is no group to join.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not started or distributed.is_initialized():
        yield place()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Some work only the process that leads does, and the others wait for it.
    try:
        distributed.init_process_group(backend, timeout=timedelta(days=1))
    except (ValueError, RuntimeError) as error:
        raise GroupError(
            f"cannot join the group that RANK and WORLD_SIZE speak of ({_line(error)}); start the "
            "processes with torchrun, or unset both"
        ) from error
    try:
        yield place()
    finally:
        distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """All processes end the block, or none: where one fails, the others do as well.

    Raises:
        GroupError: another process has failed; that one raises its own error.
    """
    try:
        yield
    except GroupError:
        raise
    except Exception as error:
        if not is_agreed(error):
            agree(error)
        raise
    agree(None)


def agree(error: Exception | None) -> None:
    """Raises ``error``, or tells that another process has one: nobody waits for who has failed.

    Where several have failed the first of them raises its error, so that it is told once.

    Raises:
        GroupError: another process has failed.
    """
    here = place()
    if here.world == 1:
        if error is not None:
            raise error
        return
    if error is not None:
        _store().set(_FAILED, str(here.rank))
    first = torch.tensor([here.world if error is None else here.rank])
    all_reduce(first, "min")
    rank = int(first)
    if rank == here.world:
        return
    # All are here, and nobody asks; after the next sum, somebody might.
    if error is not None:
        _store().delete_key(_FAILED)
    tells = error is not None and rank == here.rank
    code = torch.tensor([getattr(error, "exit_code", 1) if tells else 0])
    all_reduce(code, "sum")
    if error is not None and tells:
        vars(error)[AGREED] = True
        raise error
    raise GroupError(
        f"process {rank} of {here.world} has failed; see its message", exit_code=int(code) or 1
    ) from error


def failed_elsewhere() -> bool:
    """Whether another process waits in `agree` with an error, so that work is in vain."""
    return place().world > 1 and bool(_store().check([_FAILED]))


def all_reduce(x: Tensor, how: Literal["min", "max", "sum"]) -> None:
    """Combines ``x`` with that of all processes, in place; alone it stays as it is."""
    operations = distributed.ReduceOp
    named = {"min": operations.MIN, "max": operations.MAX, "sum": operations.SUM}
    _collectively(lambda: distributed.all_reduce(x, named[how]))


def common_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest of all processes' ``low`` and the largest ``high``; alone they stay as they are.

    One message a call. A NaN comes out as an infinity, since not every backend keeps it.
    """
    if place().world == 1:
        return low, high
    ends = torch.stack([-low, high]).nan_to_num(nan=torch.inf, posinf=torch.inf)
    all_reduce(ends, "max")
    return -ends[0], ends[1]


def all_equal(digest: str) -> bool:
    """Whether all processes have the same hexadecimal digest."""
    own = torch.tensor([int(digest[:15], 16)])
    least, most = own.clone(), own.clone()
    all_reduce(least, "min")
    all_reduce(most, "max")
    return torch.equal(least, most)


def of_lead(x: Tensor) -> None:
    """Overwrites ``x`` with that of the process that leads."""
    _collectively(lambda: distributed.broadcast(x, src=0))


def _collectively(work: Callable[[], object]) -> None:
    if place().world == 1:
        return
    try:
        work()
    except RuntimeError as error:  # that of gloo has no class of its own
        raise GroupError(
            f"one of {place().world} processes has ended ({_line(error)}); look for its own "
            "message, or whether its memory ran out, and run again"
        ) from error


def _store() -> distributed_c10d.Store:
    """Where processes leave word for each other without waiting."""
    return distributed_c10d._get_default_store()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
