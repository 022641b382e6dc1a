"""``python -m benchmarks.one_report``: the report of EfficientNet-Lite0, its size and its time.

All sections at their defaults but the trials of advice, which are left out; calibrated on the 128
photos, judged on 100 labelled ones.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import quantkit
from benchmarks.machine import machine
from benchmarks.spine import BATCH, CALIBRATION_BATCH
from benchmarks.zoo import LITE0

RESULTS = Path(__file__).parent / "results" / "one_report.json"


def main() -> None:
    """Write the page, and tell what it takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="int8_ptq")
    parser.add_argument("--page", type=Path, default=Path("lite0.html"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.page.parent.mkdir(parents=True, exist_ok=True)
    judged = [(inputs[0], labels) for inputs, labels in LITE0.evaluation(BATCH, 100)]
    started = time.perf_counter()
    found = quantkit.report(
        LITE0.load(), options.recipe, calibration=list(LITE0.calibration(CALIBRATION_BATCH)),
        evaluation=judged, without=("advice",), name=LITE0.name,
    )  # fmt: skip
    found.save(options.page)
    results = {
        "machine": machine(),
        "model": LITE0.name,
        "recipe": options.recipe,
        "bytes": options.page.stat().st_size,
        "seconds": time.perf_counter() - started,
        "sections": {section.name: str(section.state) for section in found.sections},
    }
    print(json.dumps(results, indent=1))
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
