"""Train ResNet-20 with quantizers in a loop of your own, and deploy what was trained.

    python -m examples.qat_cifar10 --recipe w4a8_qat --epochs 3

from the repository's root. It reads a trained ResNet-20 and CIFAR-10 images from the folder that
``QUANTKIT_ASSETS`` names (see ``benchmarks/zoo.py``). Who needs no loop of their own calls
``quantkit.finetune``; docs/qat.md has both.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

import quantkit as qk
from benchmarks.qat import augmented
from benchmarks.zoo import RESNET20, RESNET20_IMAGES
from quantkit.qat.optimizing import make_optimizer

BATCH = 128


def main() -> None:
    """Calibrate, train, settle, export, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="w4a8_qat", help="such as int8_qat or w4a4_qat")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=3000, help="training images")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    options = parser.parse_args()
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)

    model = RESNET20.load()
    data = RESNET20_IMAGES.read("cifar10_train_3k.parquet", 500, options.images)
    pairs = [(x, labels) for (x,), labels in data]
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    # The float model with quantizers, calibrated: where training begins.
    qmodel = qk.quantize(model, options.recipe, calibration=list(RESNET20.calibration(64)))
    limit = options.test_images
    print(f"float       {RESNET20.score(model, limit=limit):.2f} %")
    print(f"calibrated  {RESNET20.score(qmodel, limit=limit):.2f} %")

    # Grids move from here on; where they learn they are parameters, so before the optimizer.
    qk.train_quantizers(qmodel)
    optimizer = make_optimizer(qmodel, qmodel.recipe.training)
    steps = options.epochs * -(-len(images) // BATCH)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    schedule = qk.Schedule(qmodel, steps)  # freezes observers and batch-norm when it is time
    teacher = copy.deepcopy(model).eval()
    for epoch in range(options.epochs):
        started = time.perf_counter()
        qmodel.train()
        for rows in torch.randperm(len(images)).split(BATCH):
            x = augmented(images[rows])
            with torch.no_grad():
                target = teacher(x).softmax(1)
            logits = qmodel(x)
            loss = F.cross_entropy(logits, target) + 0.1 * F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            schedule.step()
        qmodel.eval()
        score = RESNET20.score(qmodel, limit=limit)
        print(f"epoch {epoch + 1:2}    {score:.2f} %  {time.perf_counter() - started:.0f} s")

    qk.settle(qmodel)  # what was learned becomes the grids, for good
    path = qk.export_onnx(qmodel, options.out / f"resnet20.{options.recipe}.onnx")
    target = "onnxruntime" if qmodel.recipe.target == "onnxruntime" else "tensorrt_rtx"
    print(qk.check(path, target=target, reference=qmodel, data=[images[:256]]))


if __name__ == "__main__":
    main()
