# SPDX-License-Identifier: Apache-2.0
"""Builds the forward scan of ``mamba-ssm`` for one GPU, from its own source archive.

    pip download mamba-ssm --no-deps --no-binary :all: -d .whl-src
    python -m benchmarks.build_mamba_ssm .whl-src/mamba_ssm-*.tar.gz --arch 90 --out /tmp/mamba

A peer of benchmarks/plugins.py. The whole package takes tens of minutes to build: nine files of
kernels for nine GPUs. Of these, only the forward kernels for FP16 and FP32 with real weights are
compiled here, with the package's own flags and sources, unchanged; what else the bindings name
(backward kernels, BF16, complex weights) is a stub that raises. Nothing of mamba-ssm is in this
repository. Needs the PyTorch that will load the module, nvcc and g++, and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

MODULE = "selective_scan_cuda"
# As in the package's setup.py, but for the list of GPUs and what only reports or debugs.
NVCC_FLAGS = (
    "-O3", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT162_OPERATORS__", "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
    "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math",
)  # fmt: skip
KERNEL = """#include "selective_scan_fwd_kernel.cuh"
template void selective_scan_fwd_cuda<{type}, float>(SSMParamsBase&, cudaStream_t);
"""
STUBS = """#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime_api.h>
#include "selective_scan.h"
template <typename input_t, typename weight_t>
void selective_scan_fwd_cuda(SSMParamsBase&, cudaStream_t) { TORCH_CHECK(false, "not built"); }
template <typename input_t, typename weight_t>
void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t) { TORCH_CHECK(false, "not built"); }
#define FWD(I, W) template void selective_scan_fwd_cuda<I, W>(SSMParamsBase&, cudaStream_t);
#define BWD(I, W) template void selective_scan_bwd_cuda<I, W>(SSMParamsBwd&, cudaStream_t);
FWD(c10::Half, c10::complex<float>)
FWD(float, c10::complex<float>)
FWD(c10::BFloat16, float)
FWD(c10::BFloat16, c10::complex<float>)
BWD(c10::Half, float)
BWD(c10::Half, c10::complex<float>)
BWD(float, float)
BWD(float, c10::complex<float>)
BWD(c10::BFloat16, float)
BWD(c10::BFloat16, c10::complex<float>)
"""


def unpack(archive: Path, folder: Path) -> tuple[str, Path]:
    """Unpack the scan's sources; the package's version and their folder."""
    with tarfile.open(archive) as tar:
        names = [m for m in tar.getmembers() if "/csrc/selective_scan/" in m.name]
        tar.extractall(folder, members=names, filter="data")
        information = next(m for m in tar.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", m.name))
        stream = tar.extractfile(information)
        assert stream is not None
        version = re.search(r"^Version: (.+)$", stream.read().decode(), re.MULTILINE)
    assert version is not None
    (sources,) = folder.glob("*/csrc/selective_scan")
    return version[1], sources


def run(command: list[str]) -> float:
    """Run a command; its seconds. Prints the end of its output where it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(" ".join(command), done.stdout[-2000:], done.stderr[-6000:], sep="\n")
        raise SystemExit(1)
    return time.perf_counter() - start


def main() -> None:
    """Build the module into a folder, with a note of what it was built from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--std", default="c++17", help="PyTorch's headers may want a later one")
    options = parser.parse_args()
    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with tempfile.TemporaryDirectory() as scratch:
        version, sources = unpack(options.sdist, Path(scratch))
        generated = {
            "kernel_half.cu": KERNEL.format(type="at::Half"),
            "kernel_float.cu": KERNEL.format(type="float"),
            "stubs.cpp": STUBS,
        }
        for name, text in generated.items():
            (sources / name).write_text(text)
        includes = [*cpp_extension.include_paths("cpu"), sysconfig.get_paths()["include"]]
        flags = [f"-I{sources}", *(f"-isystem={i}" for i in includes), f"-std={options.std}"]
        flags += [f"-DTORCH_EXTENSION_NAME={MODULE}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
        nvcc = "/usr/local/cuda/bin/nvcc"
        nvcc = nvcc if os.access(nvcc, os.X_OK) else "nvcc"
        arch = [f"-gencode=arch=compute_{options.arch},code=sm_{options.arch}"]
        # nvcc also for C++: it knows where CUDA's headers are.
        common = [nvcc, *NVCC_FLAGS, *arch, *flags, "-Xcompiler=-fPIC", "-w", "-c"]
        names = ["kernel_half.cu", "kernel_float.cu", "selective_scan.cpp", "stubs.cpp"]
        with ThreadPoolExecutor(len(names)) as pool:
            seconds = list(
                pool.map(
                    run, [[*common, str(sources / n), "-o", str(sources / n) + ".o"] for n in names]
                )
            )
        libraries = [f"-L{path}" for path in cpp_extension.library_paths("cpu")]
        libraries += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10_cuda"]
        objects = [str(sources / n) + ".o" for n in names]
        # The CUDA runtime is PyTorch's, which is loaded before.
        run([nvcc, "-shared", "--cudart=shared", *objects, *libraries, "-o", str(target)])
    note = {
        "mamba_ssm": version,
        "torch": torch.__version__,
        "arch": f"sm_{options.arch}",
        "flags": " ".join(NVCC_FLAGS),
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_by_file": dict(zip(names, (round(s, 1) for s in seconds), strict=True)),
    }
    (options.out / f"{MODULE}.json").write_text(json.dumps(note, indent=2) + "\n")
    print(json.dumps(note))


if __name__ == "__main__":
    main()
