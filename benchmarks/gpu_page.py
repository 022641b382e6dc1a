"""``python -m benchmarks.gpu_page [gpu.json]``: docs/gpu.md from what ``benchmarks/gpu.sh`` found.

Every figure on the page is in the JSON. Without one the page says that nothing was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import table
from quantkit.files import replacing

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
RESULTS = Path(__file__).parent / "results" / "gpu.json"

_HEAD = """\
# On a GPU

`benchmarks/gpu.sh` measures, in one command of at most ten minutes and without a network, what only
a GPU can show: the table of `quantkit hardware` held against the device, how fast it multiplies in
each format, compiled models, and engines that are built and run. It writes this page.

```text
benchmarks/gpu.sh [WHEELS] [OUT]
```

`WHEELS` is a folder of wheels for what the Python there lacks; nothing is installed outside a
folder of its own. `PYTHON` names the Python that has a CUDA build of PyTorch.
"""

_NOTHING = """\
**Nothing on this page has been measured: no GPU was at hand.** No engine that quantkit built has
been run yet, and no code for GPUs has run on one. What is said elsewhere of TensorRT is what its
builder and parsers say without a GPU ([benchmarks.md](benchmarks.md#engines-for-five-gpus)).
"""


def main() -> None:
    """Write the page."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    results = json.loads(path.read_text()) if path.is_file() else None
    with replacing(PAGE) as temporary:
        temporary.write_text(render(results))


def render(results: dict[str, Any] | None) -> str:
    """The page of one run; ``None`` where there was none."""
    if results is None:
        return f"{_HEAD}\n{_NOTHING}"
    lines = [_HEAD, f"Measured on {results['date']}.", ""]
    for name, section in results["sections"].items():
        lines += [*_section(name, section), ""]
    return "\n".join(lines)


def _section(name: str, section: dict[str, Any]) -> Iterator[str]:
    title, render_found = _TITLES[name]
    yield f"## {title}"
    yield ""
    if "error" in section:
        yield f"Not measured: {section['error']}."
        return
    yield from render_found(section["found"])
    yield ""
    yield f"({section['seconds']:.0f} s)"


def _device(found: dict[str, Any]) -> Iterator[str]:
    agrees = "as the table has it" if found["table_agrees"] else "**not as the table has it**"
    yield (
        f"{found['gpu']}, compute capability {found['compute_capability']} ({agrees}); driver "
        f"{found['driver']}, CUDA {found['cuda']}, PyTorch {found['torch']}."
    )
    here = ", ".join(filter(None, found["runtimes"].values()))
    yield ""
    yield f"Runtimes: {here}."
    yield ""
    runtimes = list(dict.fromkeys(cell["runtime"] for cell in found["table"]))
    formats = list(dict.fromkeys(cell["format"] for cell in found["table"]))
    verdicts = {(c["format"], c["runtime"]): c["verdict"] for c in found["table"]}
    rows = ((f, *(verdicts[f, runtime] for runtime in runtimes)) for f in formats)
    yield from table(("format", *runtimes), rows)


def _probe(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "One product of 8192 x 8192 x 8192 on random data, by PyTorch; median of ten."
    yield ""
    rows = (
        (
            row["format"],
            "-" if row["tera_ops"] is None else f"{row['tera_ops']:.0f}",
            row["why"] or "",
        )
        for row in found
    )
    yield from table(("format", "tera-operations a second", "why not"), rows)


def _bench(found: dict[str, Any]) -> Iterator[str]:
    yield found["method"]["text"]
    yield ""
    head = (
        "runtime", "precision", "batch", "median ms", "p95 ms", "times the reference",
        "samples a second", "peak MB", "SQNR dB",
    )  # fmt: skip
    yield from table(head, (_row(row) for row in found["rows"]))
    yield ""
    for left in found["left_out"]:
        precision = f" {left['precision']}" if left["precision"] else ""
        yield f"- Left out: {left['target']}{precision}: {left['reason']}"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    named = (row["target"], row["precision"], str(row["batch"]))
    if row["error"] is not None:
        return (*named, f"failed: {row['error']}", *[""] * 5)
    ratio = "reference" if row["reference"] else "-"
    if row["ratio"] is not None and not row["reference"]:
        ratio = f"{row['ratio']['median']:.2f}"
    sqnr = (row["quality"] or {}).get("sqnr")
    memory = row["memory_bytes"]
    return (
        *named,
        f"{row['median_ms']:.3f}",
        f"{row['p95_ms']:.3f}",
        ratio,
        f"{row['samples_per_s']:,.0f}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
        "-" if sqnr is None else f"{sqnr:.1f}",
    )


_TITLES: dict[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
    "device": ("The device, and what the table says of it", _device),
    "probe": ("How fast it multiplies", _probe),
    "bench_resnet50": ("ResNet-50, 224 x 224", _bench),
    "bench_mobilenet_v2": ("MobileNetV2, 224 x 224", _bench),
    "bench_bert_base": ("BERT-base, 128 tokens", _bench),
}

if __name__ == "__main__":
    main()
