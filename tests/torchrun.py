"""Start real processes as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def launch(arguments: list[str], folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments, on one process or, under torchrun, on several."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(folder)])
    return subprocess.run(
        [*start, *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
