"""What each process of a torchrun does: train a quantized model under DistributedDataParallel."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

import quantkit
import small_models
from quantkit.recipe import PlugIn
from quantkit.stubs import QuantStub
from quantkit.workflow import _find_recipe

ROWS = 32
STEPS = 4


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The rows of a step, whose ranges differ a lot between the first half and the second."""
    (x,) = small_models.resnet().inputs(ROWS, seed=10 + step)
    scale = torch.cat([torch.full((ROWS // 2,), 1.0), torch.full((ROWS // 2,), 3.0)])
    return x * scale.view(-1, 1, 1, 1), torch.arange(ROWS) % 16


def quantized(passes: str) -> quantkit.QuantizedModel:
    """The same on every process."""
    recipe = _find_recipe("int8_qat").model_copy(update={"passes": (PlugIn(name=passes),)})
    calibration = [small_models.resnet().inputs(16)]
    return quantkit.quantize(small_models.resnet(), recipe, calibration=calibration)


def train(model: quantkit.QuantizedModel, grids: str, rank: int, world: int) -> dict[str, Tensor]:
    """The state after a few steps on this process's share of each batch."""
    model.train()
    quantkit.train_quantizers(model, grids)
    quantkit.freeze_batch_norm(model)  # the statistics of a batch are each process's own
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x[share]), y[share]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    quantkit.settle(model)
    return {k: v for k, v in model.state_dict().items() if "_extra_state" not in k}


def stub(rank: int, world: int) -> dict[str, Tensor]:
    """What a stub of the float model has seen."""
    seen = QuantStub(momentum=0.5)
    for step in range(3):
        seen(batch(step)[0][rank * ROWS // world : (rank + 1) * ROWS // world])
    return seen.state_dict()


def main(folder: Path) -> None:
    """Train in every way, and write what came of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Before there is a group, which would share the calibration data: moving averages depend on
    # the order of batches.
    models = {
        f"{grids} {passes}": quantized(passes)
        for grids in ("follow", "learn")
        for passes in ("fold_batchnorm", "keep_batchnorm")
    }
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if world > 1 else 0
    results = {name: train(model, name.split()[0], rank, world) for name, model in models.items()}
    torch.save({**results, "stub": stub(rank, world)}, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
