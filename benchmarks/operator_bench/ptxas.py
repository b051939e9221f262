# SPDX-License-Identifier: Apache-2.0
"""Reads what the compiler tells of a kernel, and computes what fits a multiprocessor.

The limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability"; how registers are handed out (whole warps, in units of 256, in fours of warps) is the
CUDA Occupancy Calculator's.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

WARP = 32
REGISTERS = 65536
REGISTER_UNIT = 256
WARP_UNIT = 4


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What a multiprocessor has for its resident blocks."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int
    """Of shared memory, for each block."""

    @property
    def block_shared_bytes(self) -> int:
        """The most shared memory that a block can ask for."""
        return self.shared_bytes - self.reserved_bytes


MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 * 1024, 0),
    87: Multiprocessor(48, 16, 164 * 1024, 1024),
    90: Multiprocessor(64, 32, 228 * 1024, 1024),
}


@dataclass(frozen=True, slots=True)
class Resources:
    """One compiled kernel."""

    symbol: str
    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '\w+'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")
_PTX_ENTRY = re.compile(r"\.entry (\w+)\s*\(.*?\)\s*([^{]*)\{", re.DOTALL)
_PTX_THREADS = re.compile(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_PTX_BLOCKS = re.compile(r"\.minnctapersm\s+(\d+)")


def parse_ptxas(text: str) -> list[Resources]:
    """Kernels of ``ptxas -v``, in its order. A kernel's functions, which follow it, are in it."""
    found: list[Resources] = []
    symbol, registers, shared_bytes, spills = "", 0, 0, [0, 0, 0]
    for line in [*text.splitlines(), "Compiling entry function '_' for '_'"]:
        if entry := _ENTRY.search(line):
            if symbol:
                found.append(Resources(symbol, registers, shared_bytes, *spills))
            symbol, spills = entry[1], [0, 0, 0]
        elif spill := _SPILL.search(line):
            spills = [sum(pair) for pair in zip(spills, map(int, spill.groups()), strict=True)]
        elif used := _USED.search(line):
            shared = _SHARED.search(used[2])
            registers, shared_bytes = int(used[1]), int(shared[1]) if shared else 0
    return found


def parse_bounds(ptx: str) -> dict[str, tuple[int, int]]:
    """Launch bounds in PTX: symbol -> threads of a block, and blocks of a multiprocessor (0: -)."""
    bounds = {}
    for entry in _PTX_ENTRY.finditer(ptx):
        threads, blocks = _PTX_THREADS.search(entry[2]), _PTX_BLOCKS.search(entry[2])
        total = 0
        if threads:
            total = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1)
        bounds[entry[1]] = (total, int(blocks[1]) if blocks else 0)
    return bounds


def round_up(value: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-value // unit) * unit


def resident(arch: int, registers: int, threads: int, shared_bytes: int) -> tuple[int, int, str]:
    """Blocks and warps that a multiprocessor holds at once, and what keeps it from more.

    Args:
        arch: Compute capability times ten.
        registers: Of a thread.
        threads: Of a block.
        shared_bytes: Of a block, static and dynamic.

    Example:
        >>> resident(90, 64, 512, 0)
        (2, 32, 'registers')
    """
    has = MULTIPROCESSORS[arch]
    warps = round_up(threads, WARP) // WARP
    warp_registers = round_up(registers * WARP, REGISTER_UNIT)
    by = {
        "warps": has.warps // warps,
        "blocks": has.blocks,
        "registers": REGISTERS // warp_registers // WARP_UNIT * WARP_UNIT // warps,
    }
    used = shared_bytes + has.reserved_bytes
    if shared_bytes:
        by["shared memory"] = has.shared_bytes // used
    blocks = min(by.values())
    return blocks, blocks * warps, next(name for name, limit in by.items() if limit == blocks)


def demangle(symbols: Sequence[str]) -> list[str]:
    """Names as in the sources, by c++filt, without namespaces, casts and arguments."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return [short_name(line) for line in done.stdout.splitlines()]


def short_name(name: str) -> str:
    """Cut a demangled name down to the function and its template arguments.

    Example:
        >>> short_name("void a::(anonymous namespace)::f<a::Cut<__half, (int)4, true> >(a::P)")
        'f<Cut<__half, 4, true>>'
    """
    name = name.replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name)
    name = re.sub(r"\b\w+::", "", name.removeprefix("void "))
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("> >", ">>").replace("> >", ">>")
