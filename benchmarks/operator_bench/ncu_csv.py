# SPDX-License-Identifier: Apache-2.0
"""Reads what ``ncu --csv --page raw --print-units base`` prints.

The text begins with lines of the profiler and of the program. Then come a line of names, a line of
units, and a line for each profiled kernel. Numbers have commas between thousands.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

QUANTITIES: dict[str, tuple[str, ...]] = {
    "duration_ns": ("gpu__time_duration.sum",),
    "registers": ("launch__registers_per_thread",),
    "threads": ("launch__block_size",),
    "blocks": ("launch__grid_size",),
    "waves": ("launch__waves_per_multiprocessor",),
    "static_shared_bytes": ("launch__shared_mem_per_block_static",),
    "dynamic_shared_bytes": ("launch__shared_mem_per_block_dynamic",),
    "blocks_by_registers": ("launch__occupancy_limit_registers",),
    "blocks_by_shared": ("launch__occupancy_limit_shared_mem",),
    "theoretical_warps_pct": ("sm__maximum_warps_per_active_cycle_pct",),
    "active_warps_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "active_warps": ("sm__warps_active.avg.per_cycle_active",),
    "issue_slots_busy_pct": (
        "sm__inst_issued.avg.pct_of_peak_sustained_active",
        "smsp__issue_active.avg.pct_of_peak_sustained_active",
    ),
    "warp_instructions": ("smsp__inst_executed.sum", "sm__inst_executed.sum"),
    "xu_pipe_pct": ("sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",),
    "fma_pipe_pct": (
        "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
        "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_active",
    ),
    "alu_pipe_pct": (
        "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
        "sm__pipe_alu_cycles_active.avg.pct_of_peak_sustained_active",
    ),
    "lsu_pipe_pct": ("sm__inst_executed_pipe_lsu.avg.pct_of_peak_sustained_active",),
    "dram_pct": (
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "dram_read_bytes": ("dram__bytes_read.sum",),
    "dram_write_bytes": ("dram__bytes_write.sum",),
    "l2_pct": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "l2_hit_pct": ("lts__t_sector_hit_rate.pct",),
    "l1_pct": (
        "l1tex__throughput.avg.pct_of_peak_sustained_active",
        "l1tex__throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "shared_load_conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",),
    "shared_store_conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",),
    "shared_conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",),
    "shared_wavefronts": ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",),
}
"""What is kept, and the metrics that tell it: the first that is there."""
STALL = re.compile(
    r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active)?\.ratio"
)
TOP_STALLS = 5
LANES = 32


@dataclass(frozen=True, slots=True)
class Kernel:
    """One profiled kernel."""

    name: str
    metrics: dict[str, float]


def number(text: str) -> float | None:
    """A number as ncu prints it; None for what is none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def parse(text: str) -> list[Kernel]:
    """The kernels, in the order of their launches.

    Raises:
        ValueError: There is no table in the text, or it lacks the kernels' names.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("no table of ncu in: " + " | ".join(lines[-10:]))
    names, _, *rows = csv.reader(lines[start:])
    if "Kernel Name" not in names:
        raise ValueError(f"no column 'Kernel Name' among {len(names)}")
    kernels = []
    for row in rows:
        if len(row) != len(names):  # what the program printed after the table
            continue
        cells = dict(zip(names, row, strict=True))
        numbers = {name: number(cell) for name, cell in cells.items()}
        kernels.append(
            Kernel(cells["Kernel Name"], {n: v for n, v in numbers.items() if v is not None})
        )
    return kernels


def digest(kernel: Kernel, scan_elements: int) -> dict[str, Any]:
    """What is kept of one kernel; None where the profiler did not tell.

    ``instructions_per_element`` counts thread instructions of a scan element: warp instructions
    times 32, idle lanes included, by scan elements (B * 4 * D * H * W). ``stalls`` are the
    scheduler's most frequent reasons: the warps that wait for it, a cycle in which one is issued.
    """
    kept: dict[str, Any] = {"kernel": kernel.name}
    for key, alternatives in QUANTITIES.items():
        kept[key] = next((kernel.metrics[m] for m in alternatives if m in kernel.metrics), None)
    instructions = kept["warp_instructions"]
    kept["instructions_per_element"] = (
        None if instructions is None else round(instructions * LANES / scan_elements, 2)
    )
    stalls = {
        found[1]: value
        for name, value in kernel.metrics.items()
        if (found := STALL.fullmatch(name))
    }
    largest = sorted(stalls, key=lambda reason: -stalls[reason])[:TOP_STALLS]
    kept["stalls"] = {reason: round(stalls[reason], 3) for reason in largest}
    return kept
