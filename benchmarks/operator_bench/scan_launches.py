# SPDX-License-Identifier: Apache-2.0
"""What scans would launch on GPUs that nobody has here, asked of the kernels' own host code.

The choice of a kernel and of its blocks is C++ (``launchOn`` in selective_scan_2d/launches.h). A
small program is linked with it, and answers for any sizes and device facts. No GPU is needed, and
of the device code only PTX is made, without optimisation: nothing runs it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks.operator_bench.ptxas import demangle
from stormrt.plugins.derive.cpp_header import SOURCES
from stormrt.plugins.toolchain import Toolchain

_PROGRAM = Path(__file__).with_name("scan_launches.cpp")
_KERNEL = re.compile(r"^([0-9a-f]+) t (_ZN\w*\d(?:staged|banded)ScanI\w*)$", re.MULTILINE)
_JOBS = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What a launch depends on, of a device."""

    multiprocessors: int
    shared_bytes: int
    """The most that a block can ask for."""


@dataclass(frozen=True, slots=True)
class ScanCall:
    """A call of SelectiveScan2D, by what its launch depends on."""

    batch: int
    channels: int
    height: int
    width: int
    state: int = 1
    half: bool = True
    offset: int = 0
    """Where tensors begin, in bytes from an aligned address."""
    tactic: int = 0


@dataclass(frozen=True, slots=True)
class ScanLaunch:
    """What a call launches."""

    kernel: str
    """``staged`` or ``banded``."""
    variant: str
    """With its template arguments, as ``ptxas.demangle`` writes them."""
    blocks: int
    threads: int
    shared_bytes: int
    """Dynamic, of a block."""


class ScanLaunches:
    """The program, built.

    Args:
        tools: The compilers.
        folder: Where it goes.
    """

    def __init__(self, tools: Toolchain, folder: Path) -> None:
        self._program = folder / "scan_launches"
        sources = [_PROGRAM, *sorted((SOURCES / "selective_scan_2d").glob("*.cu"))]
        base: list[str | Path] = [
            tools.nvcc, f"-ccbin={tools.host_compiler}", "-std=c++17", "-I", SOURCES,
            "-gencode=arch=compute_75,code=compute_75", "-Xcicc=-O0", "-Xcompiler=-fno-pie",
        ]  # fmt: skip

        def compile_one(source: Path) -> Path:
            out = folder / f"{source.name}.o"
            _run([*base, "-c", source, "-o", out])
            return out

        with ThreadPoolExecutor(_JOBS) as pool:
            objects = list(pool.map(compile_one, sources))
        # Addresses are those of the program's file.
        _run([*base, "-Xcompiler=-no-pie", *objects, "-o", self._program])
        found = _KERNEL.findall(_run(["nm", self._program]))
        names = demangle([symbol for _, symbol in found])
        self._variants = {
            int(address, 16): name for (address, _), name in zip(found, names, strict=True)
        }

    @property
    def variants(self) -> frozenset[str]:
        """Of both kernels, all that there are."""
        return frozenset(self._variants.values())

    def __call__(self, calls: Sequence[ScanCall], facts: Facts) -> list[ScanLaunch | int]:
        """What each call launches on a device; for a call that is refused, the cudaError_t."""
        return [self._read(answer) for answer in self._ask(calls, facts)]

    def count_tactics(self, call: ScanCall) -> int:
        """Tactics that there are for a call."""
        ((count, *_),) = self._ask([call], Facts(1, 0))
        return int(count)

    def _ask(self, calls: Sequence[ScanCall], facts: Facts) -> list[list[str]]:
        lines = (" ".join(str(int(v)) for v in (*astuple(c), *astuple(facts))) for c in calls)
        return [line.split() for line in _run([self._program], "\n".join(lines)).splitlines()]

    def _read(self, answer: list[str]) -> ScanLaunch | int:
        _, status, kernel, blocks, threads, shared_bytes, address = answer
        if status != "0":
            return int(status)
        variant = self._variants[int(address, 16)]
        return ScanLaunch(kernel, variant, int(blocks), int(threads), int(shared_bytes))


def _run(command: Sequence[str | Path], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stderr[-4000:]}")
    return done.stdout
