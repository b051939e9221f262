# SPDX-License-Identifier: Apache-2.0
"""The plugin library's kernels on a GPU: right against FP64, and how near to the memory's speed.

    stormrt plugins build --arch 90 --out /tmp/lib
    python -m benchmarks.build_mamba_ssm .whl-src/mamba_ssm-*.tar.gz --arch 90 --out /tmp/mamba
    STORMRT_PLUGIN_LIB=/tmp/lib/libstormrt_plugins.so python -m benchmarks.plugins \
        --modules /tmp/mamba

Parts (``--parts``): ``check`` compares every combination of sizes with FP64, and ``tactics`` every
tactic of some sizes; ``scan`` and ``gather`` time single operators beside their peers, in CUDA
graphs and without, with a warm and a cold L2; ``model`` times the whole VMamba-T. How times are
taken: operator_bench/timing.py. Writes benchmarks/results/plugins.json after each row, and keeps
the parts that are there if they were measured on the same GPU with the same library.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.operator_bench.check import check, check_tactics
from benchmarks.operator_bench.gather import time_movers
from benchmarks.operator_bench.model import time_model
from benchmarks.operator_bench.operands import TIMED
from benchmarks.operator_bench.report import write
from benchmarks.operator_bench.scan import time_scan
from benchmarks.operator_bench.timing import CALLS, COLD_CALLS, ROUNDS, Flush, copy_bandwidth
from stormrt.plugins.native import library_path, load_library

RESULTS = Path(__file__).parent / "results" / "plugins.json"
SCHEMA_VERSION = 2
PARTS = ("scan", "gather", "model", "tactics", "check")
COPY_TOLERANCE = 0.05
"""Copy bandwidths that differ by more were not measured on machines in the same state."""


def driver_version() -> str:
    """The driver's version, as nvidia-smi tells it; empty without."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "library": load_library(library_path()).build_info,
    }


def kept_parts(path: Path, here: dict[str, Any], bandwidth: float) -> dict[str, Any]:
    """Results that are there already, if they were measured on the same; else none."""
    fresh = {"schema_version": SCHEMA_VERSION, "environment": here}
    if path.is_file():
        old: dict[str, Any] = json.loads(path.read_text())
        same = all(old.get(key) == value for key, value in fresh.items())
        ratio = old.get("copy_gb_s", 0.0) * 1e9 / bandwidth
        if same and abs(ratio - 1) < COPY_TOLERANCE:
            return old
        print(f"{path}: of another library, GPU or speed; its parts are dropped")
    return fresh


def growing(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows so far, after each: a run that is cut off leaves those that it had."""
    so_far: list[dict[str, Any]] = []
    for row in rows:
        so_far.append(row)
        yield so_far


def main() -> None:
    """Run the parts asked for, and write the results after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--check-seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--modules", type=Path, help="folder of the built selective_scan_cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.modules:
        sys.path.insert(0, str(options.modules.resolve()))
    print(f"seed {options.seed}")
    bandwidth, flush = copy_bandwidth(), Flush()
    content = kept_parts(options.out, environment(), bandwidth)
    content.setdefault("copy_gb_s", round(bandwidth / 1e9, 1))
    content["l2_bytes"] = flush.l2_bytes
    content["method"] = {"rounds": ROUNDS, "calls": CALLS, "cold_calls": COLD_CALLS}
    print(f"{content['environment']['gpu']}, copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    parts: dict[str, tuple[str, Callable[[], Iterator[Any]]]] = {
        "scan_fp16_n1": ("scan", lambda: growing(time_scan(s, bandwidth, flush) for s in TIMED)),
        "movers_fp16": ("gather", lambda: growing(time_movers(bandwidth, flush))),
        "vmamba_tiny_s1l8_fp16_graph": ("model", lambda: iter([time_model()])),
        "tactics": ("tactics", lambda: iter([check_tactics(options.seed)])),
        "check": ("check", lambda: iter([check(options.check_seconds, options.seed)])),
    }
    for key, (part, work) in parts.items():
        if part not in options.parts:
            continue
        start = time.perf_counter()
        for result in work():
            content[key] = result
            write(options.out, content)
        print(f"{part}: {time.perf_counter() - start:.0f} s; {options.out}", flush=True)


if __name__ == "__main__":
    main()
