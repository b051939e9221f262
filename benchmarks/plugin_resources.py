# SPDX-License-Identifier: Apache-2.0
"""What the compiler gives each kernel of the plugin library, on GPUs that nobody has here.

    python -m benchmarks.plugin_resources

Compiles the kernels with the library's own flags for each architecture (no GPU needed) and reads
registers, static shared memory and spills from ``ptxas -v``, and launch bounds from the PTX. Asks
the scan's own host code what VMamba-T's scans launch by default on a T4, an Orin and an H100.
Resident blocks and warps are computed: what of a launch's blocks fits a multiprocessor by
registers, shared memory, threads and their number; for kernels whose blocks are of one size, of the
launch bounds' block. Writes benchmarks/results/plugin_resources.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.operator_bench.estimates import BATCHES, STAGES
from benchmarks.operator_bench.ptxas import (
    MULTIPROCESSORS,
    demangle,
    parse_bounds,
    parse_ptxas,
    resident,
)
from benchmarks.operator_bench.report import write
from benchmarks.operator_bench.scan_launches import Facts, ScanCall, ScanLaunches
from stormrt.plugins.builder import code_names
from stormrt.plugins.derive.cpp_header import (
    SOURCES,
    native_plugins,
    source_digest,
    write_headers,
)
from stormrt.plugins.toolchain import Toolchain, find_toolchain
from stormrt.targets import load_target

RESULTS = Path(__file__).parent / "results" / "plugin_resources.json"
SCHEMA_VERSION = 2
TARGETS = {75: "t4", 87: "orin-agx-64g"}
"""Of which recipe a device's multiprocessors are. The H100's are NVIDIA's for the SXM5 module."""
H100 = "H100"
H100_MULTIPROCESSORS = 132
LARGE = (96, 128, 128)
"""D, H, W of the first stage at 512 x 512."""


def kernel_sources() -> list[Path]:
    """The library's CUDA files."""
    folders = ["common", *(spec.torch_name for spec in native_plugins(SOURCES))]
    return [path for folder in folders for path in sorted((SOURCES / folder).glob("*.cu"))]


def compile_one(source: Path, arch: int, tools: Toolchain, generated: Path) -> list[dict[str, Any]]:
    """Compile one file for one architecture, and read what its kernels were given."""
    with tempfile.TemporaryDirectory() as scratch:
        command: list[str | Path] = [
            tools.nvcc, f"-ccbin={tools.host_compiler}", "-std=c++17", "-O3",
            "-I", SOURCES, "-I", generated, "-isystem", tools.headers.folder,
            f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v",
            "--keep", f"--keep-dir={scratch}", "-cubin", source, "-o", f"{scratch}/kernel.cubin",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{source} for sm_{arch}:\n{done.stderr[-4000:]}")
        (ptx,) = Path(scratch).glob("*.ptx")
        bounds = parse_bounds(ptx.read_text())
    kernels = parse_ptxas(done.stderr)
    rows = []
    for kernel, name in zip(kernels, demangle([k.symbol for k in kernels]), strict=True):
        threads, blocks = bounds[kernel.symbol]
        row = {"file": str(source.relative_to(SOURCES)), "kernel": name, **asdict(kernel)}
        del row["symbol"]
        row["bound_threads"], row["bound_blocks"] = threads, blocks
        # The scan's blocks are of many sizes, with dynamic shared memory: see "launches".
        if not row["file"].startswith("selective_scan_2d"):
            row |= residency(arch, kernel.registers, threads, kernel.static_shared_bytes)
        rows.append(row)
    return rows


def residency(arch: int, registers: int, threads: int, shared_bytes: int) -> dict[str, Any]:
    """What of a kernel's blocks a multiprocessor holds at once, by name."""
    fits = resident(arch, registers, threads, shared_bytes)
    return dict(zip(("resident_blocks", "resident_warps", "limit"), fits, strict=True))


def device_facts(arch: int) -> tuple[str, Facts]:
    """The device that an architecture stands for, and what a launch depends on of it."""
    shared_bytes = MULTIPROCESSORS[arch].block_shared_bytes
    if arch not in TARGETS:
        return H100, Facts(H100_MULTIPROCESSORS, shared_bytes)
    name = TARGETS[arch]
    return name, Facts(load_target(name).device.sm_count, shared_bytes)


def scan_launches(
    arch: int, kernels: Mapping[str, Mapping[str, Any]], launches: ScanLaunches
) -> list[dict[str, Any]]:
    """What VMamba-T's scans launch by default on an architecture's device, and what of it fits.

    Args:
        arch: Compute capability times ten.
        kernels: What the compiler gave the kernels, by name.
        launches: Asks the scan.
    """
    _, facts = device_facts(arch)
    calls = [
        ScanCall(batch, *shape, half=half)
        for half in (True, False)
        for batch in BATCHES
        for shape in (*STAGES, LARGE)
    ]
    rows = []
    for call, found in zip(calls, launches(calls, facts), strict=True):
        if isinstance(found, int):
            raise SystemExit(f"{call} is refused on sm_{arch}: cudaError_t {found}")
        kernel = kernels[found.variant]
        static = kernel["static_shared_bytes"]
        rows.append(
            {
                "shape": [call.batch, call.channels, call.height, call.width],
                "dtype": "float16" if call.half else "float32",
                "kernel": found.variant,
                "blocks": found.blocks,
                "threads": found.threads,
                "registers": kernel["registers"],
                "static_shared_bytes": static,
                "dynamic_shared_bytes": found.shared_bytes,
                **residency(arch, kernel["registers"], found.threads, static + found.shared_bytes),
            }
        )
    return rows


def measure(archs: Sequence[int]) -> dict[str, Any]:
    """Compile every file for every architecture."""
    tools = find_toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch) / "generated"
        write_headers(generated, " ".join(code_names(archs)), SOURCES)
        jobs = [(arch, source) for arch in archs for source in kernel_sources()]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            rows = list(pool.map(lambda job: compile_one(job[1], job[0], tools, generated), jobs))
        by_arch: dict[str, list[dict[str, Any]]] = {f"sm_{arch}": [] for arch in archs}
        for (arch, _), found in zip(jobs, rows, strict=True):
            by_arch[f"sm_{arch}"] += found
        launches = ScanLaunches(tools, Path(scratch))
        devices = {}
        for arch in archs:
            name, facts = device_facts(arch)
            kernels = {kernel["kernel"]: kernel for kernel in by_arch[f"sm_{arch}"]}
            devices[name] = {
                "arch": f"sm_{arch}",
                "facts": asdict(facts),
                "launches": scan_launches(arch, kernels, launches),
            }
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": {"nvcc": tools.nvcc_version, "sources": source_digest(SOURCES)},
        "multiprocessors": {f"sm_{arch}": asdict(MULTIPROCESSORS[arch]) for arch in archs},
        "kernels": by_arch,
        "devices": devices,
    }


def main() -> None:
    """Compile, print what spills, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", type=int, default=sorted(MULTIPROCESSORS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    content = measure(options.archs)
    for arch, kernels in content["kernels"].items():
        spilling = [k["kernel"] for k in kernels if k["spill_store_bytes"] or k["spill_load_bytes"]]
        print(f"{arch}: {len(kernels)} kernels, {len(spilling)} spill {spilling}")
    write(options.out, content)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
