# SPDX-License-Identifier: Apache-2.0
"""The scan's kernel by the profiler's counters, for some shapes in FP16 with N = 1.

    STORMRT_PLUGIN_LIB=/tmp/lib/libstormrt_plugins.so python -m benchmarks.profile_scan

Runs itself under Nsight Compute (``ncu``), which replays each launch some forty times to read all
counters. Caches are emptied before each of these (its default) and clocks are left alone, so that
durations are of a cold L2 and not those of benchmarks/plugins.py. Writes
benchmarks/results/profile_scan.json; what each entry means: operator_bench/ncu_csv.py.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.operator_bench.report import write

RESULTS = Path(__file__).parent / "results"
SHAPES = (
    (16, 96, 56, 56), (16, 192, 28, 28), (16, 384, 14, 14), (16, 768, 7, 7), (16, 96, 128, 128),
    (1, 96, 56, 56), (1, 768, 7, 7),
)  # fmt: skip
NAMESPACE = "selective_scan_2d"
NCU_FOLDERS = "/usr/local/cuda/bin:/opt/nvidia/nsight-compute/2025.3.1"
WARM_UP = 3


def parse_shape(text: str) -> tuple[int, ...]:
    """``16x96x56x56`` -> B, D, H, W; ``@33`` behind it names a tactic."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)(?:@(\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected BxDxHxW or BxDxHxW@TACTIC")
    return tuple(int(part or 0) for part in found.groups())


def drive(shapes: list[tuple[int, ...]]) -> None:
    """The program under the profiler: each shape is launched once while counters are read."""
    import torch  # not needed by the process that starts the profiler

    from benchmarks.operator_bench.operands import launch, scan_inputs
    from stormrt.plugins.native import library_path, load_library

    generator = torch.Generator("cuda").manual_seed(0)
    for batch, channels, height, width, tactic in shapes:
        tensors = scan_inputs(batch, channels, height, width, 1, "mid", torch.float16, generator)
        y = torch.empty_like(tensors[0])
        for _ in range(WARM_UP):
            launch(tensors, y, tactic)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        launch(tensors, y, tactic)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "library": load_library(library_path()).build_info,
    }
    print("environment " + json.dumps(facts), flush=True)


def best_tactics(path: Path, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The same shapes with the best tactic that benchmarks/plugins.py found, where it found one."""
    rows = json.loads(path.read_text())["scan_fp16_n1"]
    best = {tuple(row["shape"]): row["best_tactic"] for row in rows}
    return [(*shape[:4], shape[4] or best.get(shape[:4], 0)) for shape in shapes]


def profile(shapes: list[tuple[int, ...]], keep: Path | None) -> dict[str, Any]:
    """Run ``drive`` under ncu, and keep what its table says of each shape's kernels."""
    from benchmarks.operator_bench.ncu_csv import digest, parse

    ncu = shutil.which("ncu") or shutil.which("ncu", path=NCU_FOLDERS)
    if ncu is None:
        raise SystemExit(f"ncu is neither in PATH nor in {NCU_FOLDERS}")
    version = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=False).stdout
    named = ["x".join(map(str, s[:4])) + f"@{s[4]}" for s in shapes]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "ncu.csv"
        command = [
            ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log),
            "--set", "full", "--clock-control", "none", "--profile-from-start", "off",
            "--kernel-name-base", "demangled", "--kernel-name", f"regex:{NAMESPACE}",
            sys.executable, "-m", "benchmarks.profile_scan", "--drive", "--shapes", *named,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = log.read_text() if log.is_file() else ""
    if keep:
        keep.write_text(text)
    facts = re.search(r"^environment (.+)$", done.stdout + "\n" + text, re.MULTILINE)
    if done.returncode != 0 or facts is None:
        print(done.stdout[-3000:], done.stderr[-3000:], text[-3000:], sep="\n")
        raise SystemExit(f"ncu ended with {done.returncode}")
    kernels = parse(text)
    each, rest = divmod(len(kernels), len(shapes))
    if rest or not each:
        raise SystemExit(f"{len(kernels)} kernels for {len(shapes)} shapes: they cannot be told")
    rows = []
    for i, (batch, channels, height, width, tactic) in enumerate(shapes):
        elements = 4 * batch * channels * height * width
        digests = [digest(k, elements) for k in kernels[i * each : (i + 1) * each]]
        rows.append(
            {
                "shape": [batch, channels, height, width],
                "tactic": tactic,
                "scan_elements": elements,
                "kernels": digests,
            }
        )
    environment = {**json.loads(facts[1]), "ncu": version.strip().splitlines()[-1:]}
    return {"schema_version": 1, "environment": environment, "rows": rows}


def main() -> None:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [(*shape, 0) for shape in SHAPES]
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=default)
    parser.add_argument("--best", type=Path, help="a plugins.json whose best tactics are taken")
    parser.add_argument("--keep", type=Path, help="where the profiler's own table is left")
    parser.add_argument("--out", type=Path, default=RESULTS / "profile_scan.json")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.shapes)
        return
    shapes = best_tactics(options.best, options.shapes) if options.best else options.shapes
    content = profile(shapes, options.keep)
    for row in content["rows"]:
        print(json.dumps(row))
    write(options.out, content)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
