# SPDX-License-Identifier: Apache-2.0
"""Latencies are high, or differ from run to run."""

from __future__ import annotations

from stormrt.pipeline import probe
from stormrt.pipeline.doctor import power
from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts


def _check(facts: Facts) -> Finding:
    board = facts.machine.jetson
    if board is None:
        return cannot_tell("not a Jetson: clocks are not told; nvidia-smi -q -d CLOCK,PERFORMANCE")
    if board.power_mode == probe.UNKNOWN:
        return cannot_tell("nvpmodel does not tell the mode: sudo nvpmodel -q")
    if power.is_full_power(board.power_mode, facts.power_modes):
        return ok(f"power mode {board.power_mode}; whether jetson_clocks was run is not told")
    return problem(
        f"power mode {board.power_mode}, not the fastest",
        power.full_power_command(facts.power_modes),
    )


COMPLAINT = Complaint(
    id="slow-board",
    title="Slower than it should be, or unsteady",
    spoils="speed, and latencies that mean something",
    symptoms=(
        "GPU compute time is unstable, with coefficient of variance",
        "Throughput may be bound by Enqueue Time rather than GPU Compute",
        "locking GPU clock frequency or adding --useSpinWait",
        "inference time is unstable",
        "Unstable inference time",
        "slower than trtexec",
    ),
    cause="A Jetson starts in a power mode below its best, and clocks follow the load. Modes have "
    "other numbers on each module: MAXN is 0 on an AGX Orin, MAXN_SUPER 2 on an Orin Nano with "
    "JetPack 6.2. And programs are not timed alike: trtexec 11 uses CUDA graphs and no copies "
    "unless told, 10.3 the other way round.",
    mend=(
        (
            "`stormrt doctor` prints the number of the fastest mode of this board; "
            "`sudo nvpmodel -m NUMBER && sudo jetson_clocks`. Super modes need a cooler for them."
        ),
        "On a T4 lock the clocks: `nvidia-smi -q -d SUPPORTED_CLOCKS`, `sudo nvidia-smi -lgc MHZ`.",
        "Many small kernels: `Engine.load(..., cuda_graph=True)`, `trtexec --useCudaGraph`.",
        (
            "Compare like with like: `--useCudaGraph --useSpinWait --noDataTransfers` on 10.x is "
            "what trtexec 11 does by itself."
        ),
    ),
    looks_at="nvpmodel's mode against the modes that /etc/nvpmodel.conf lists",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#3493",
        "NVIDIA/TensorRT#4382",
        "ultralytics/ultralytics#22479",
        "trtexec of TensorRT 11.1: its defaults",
    ),
)
