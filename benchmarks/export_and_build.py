# SPDX-License-Identifier: Apache-2.0
"""Export, build and CPU speed of whole models: what this machine takes, as ratios.

For each model, in a process of its own: seconds of export, nodes and MiB of the native graph,
seconds of the TensorRT-RTX build for SM 7.5 (FP16; the engine is not run), peak memory, and the
time of one image in onnxruntime beside PyTorch eager, measured in turns.

    python benchmarks/export_and_build.py
    python benchmarks/export_and_build.py --models vmamba_tiny_s1l8 --storm keep=0.75

Prints a table, and writes benchmarks/results/export_and_build.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

DEFAULT_MODELS = ("vmamba_tiny_s1l8", "vmamba_small_s2l15", "vmamba_base_s2l15")
RESULTS = Path(__file__).parent / "results" / "export_and_build.json"
UPSTREAM_SECONDS = {"vmamba_tiny_s1l8": 0.33, "vmamba_base_s2l15": 0.75}
"""Upstream's own PyTorch code, one image on two such cores, measured by the project before this
script existed; not measured here."""


def measure(model: str, storm: str, repeats: int) -> dict[str, object]:
    """Measure one model in this process."""
    import numpy as np
    import torch

    from stormrt.pipeline.artifacts import INPUT_NAME, ModelSpec
    from stormrt.pipeline.comparison import open_session
    from stormrt.pipeline.engine import build_engine
    from stormrt.pipeline.export import export
    from stormrt.pipeline.lower import lower
    from stormrt.pipeline.model_source import build_model
    from stormrt.pipeline.precision import set_precision
    from stormrt.storm import parse_plan
    from stormrt.storm.variants import get_variant
    from stormrt.targets import load_target

    plan = parse_plan(storm, get_variant(model), 224, 224)
    spec = ModelSpec(model, 1000, None, None, 0, 224, 224, 1, False, plan)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        export(spec, work / "exported.onnx")
        export_seconds = time.perf_counter() - start
        graphs = {}
        for precision in ("fp32", "fp16"):
            set_precision(work / "exported.onnx", precision, work / "q.onnx")
            graphs[precision] = lower(work / "q.onnx", work / f"{precision}.onnx", None).native
        engine = build_engine(
            work / "fp16.onnx",
            runtime="tensorrt_rtx",
            target=load_target("t4"),
            out=work / "engine.plan",
        )
        image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        session = open_session((work / "fp32.onnx").read_bytes(), "fp32.onnx")
    network = build_model(spec)
    tensor = torch.from_numpy(image)

    def eager() -> None:
        with torch.inference_mode():
            network(tensor)

    def onnxruntime() -> None:
        session.run(None, {INPUT_NAME: image})

    times: dict[str, list[float]] = {"eager": [], "onnxruntime": []}
    for round_number in range(repeats + 2):
        for name, run in (("eager", eager), ("onnxruntime", onnxruntime)):
            # The threads of one runtime spin for a while after it returns and would slow the
            # other down.
            time.sleep(0.05)
            start = time.perf_counter()
            run()
            if round_number >= 2:
                times[name].append(time.perf_counter() - start)
    eager_ms = 1e3 * statistics.median(times["eager"])
    ort_ms = 1e3 * statistics.median(times["onnxruntime"])
    return {
        "model": model,
        "storm": plan.describe(),
        "export_seconds": round(export_seconds, 1),
        "native_nodes_fp32": graphs["fp32"].node_count,
        "native_nodes_fp16": graphs["fp16"].node_count,
        "onnx_fp32_mib": round(graphs["fp32"].file.size_bytes / 2**20, 1),
        "onnx_fp16_mib": round(graphs["fp16"].file.size_bytes / 2**20, 1),
        "rtx_build_seconds": round(engine.build_seconds, 1),
        "rtx_engine_mib": round(engine.size_bytes / 2**20, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "eager_ms": round(eager_ms, 1),
        "onnxruntime_ms": round(ort_ms, 1),
        "eager_over_onnxruntime": round(eager_ms / ort_ms, 2),
        "upstream_over_onnxruntime": (
            round(1e3 * UPSTREAM_SECONDS[model] / ort_ms, 2)
            if model in UPSTREAM_SECONDS and not plan.reductions
            else None
        ),
    }


def environment() -> dict[str, object]:
    """What the figures were measured on."""
    from stormrt.pipeline.probe import probe_machine

    machine = probe_machine()
    return {
        "cpu": machine.cpu,
        "cpus": machine.cpu_count,
        "memory_mib": machine.memory_mib,
        "python": machine.python,
        "packages": dict(machine.packages),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    table = Table(title="tensorrt_rtx engines are for SM 7.5, FP16, and were not run")
    names = [name for name in rows[0] if name != "storm"]
    for name in names:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in names))
    Console(width=220).print(table)


def main() -> None:
    """Run one process for each model, then print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS))
    parser.add_argument("--storm", nargs="+", default=["keep=1", "keep=0.75"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.models[0], options.storm[0], options.repeats)))
        return
    # As the command line does: threads that spin would slow the other runtime, and any neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    for model in options.models:
        for storm in options.storm:
            command = [sys.executable, __file__, "--one", "--models", model, "--storm", storm]
            command += ["--repeats", str(options.repeats)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"asked": storm, **json.loads(result.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
    show(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": 1, "environment": environment(), "rows": rows}
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written: {os.path.relpath(options.out)}")


if __name__ == "__main__":
    main()
