# SPDX-License-Identifier: Apache-2.0
"""The builder runs out of memory, or is killed."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts

BUILD_MIB = 3600
"""Estimate of what a build takes beside the workspace: exporting and building VMamba-B by
TensorRT-RTX peaked at 3523 MiB (benchmarks/results/export_and_build.json); TensorRT on a board was
not measured."""
_SWAP = (
    "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile"
)


def _check(facts: Facts) -> Finding:
    memory = facts.memory
    if memory is None:
        return cannot_tell("the kernel does not tell how much memory is left")
    left = memory.available + memory.swap
    shared = facts.machine.jetson is not None
    workspace = _workspace(facts)
    # On a Jetson the GPU's scratch memory is taken from the same memory.
    need = BUILD_MIB + (workspace if shared else 0)
    told = f"{memory.available} MiB available, {memory.swap} MiB swap on disk"
    if left < need:
        return problem(f"{told}; a build may need {need} MiB (estimate)", _SWAP if shared else None)
    gpu = facts.gpu
    if gpu is not None and not shared and gpu.memory_mib < workspace:
        return problem(
            f"{gpu.name} has {gpu.memory_mib} MiB, the recipe's workspace is {workspace} MiB",
            "lower build.workspace_mib in the recipe",
        )
    return ok(f"{told}; a build may need {need} MiB (estimate)")


def _workspace(facts: Facts) -> int:
    """The recipe's, in MiB; of a bare machine an eighth of a Jetson's memory, as recipes have."""
    manifest = facts.subject.manifest if facts.subject else None
    if manifest is not None:
        from stormrt.targets import parse_target

        return parse_target(manifest.recipe, origin=manifest.target).build.workspace_mib
    return facts.machine.memory_mib // 8 if facts.machine.jetson else 0


COMPLAINT = Complaint(
    id="out-of-memory",
    title="The build is killed, or out of memory",
    spoils="building engines",
    symptoms=(
        "Device memory is insufficient to use tactic",
        "Skipping tactic ... due to insufficient memory",
        "Skipping tactic ... due to insuficient memory",
        "Try decreasing the workspace size",
        "Could not find any implementation for node",
        "std::bad_alloc",
        "CUDA out of memory",
        "OutOfMemory",
        "Out of memory",
        "Killed",
    ),
    cause="The builder tries kernels with scratch memory, beside the weights and itself. On a "
    "Jetson all of it, the desktop and swap share one memory; the kernel kills the largest "
    "process without a message but `Killed`. A skipped tactic alone is no fault: it is slower.",
    mend=(
        "Close other programs; stop the desktop: `sudo systemctl isolate multi-user.target`.",
        f"Add swap on a disk, not in zram: `{_SWAP}`.",
        "Build with `stormrt build BUNDLE/`, which needs no PyTorch, in full power (MAXN).",
        (
            "Killed: lower `build.workspace_mib` in the recipe (an eighth of the memory is the "
            "default). `Could not find any implementation`: raise it, or free memory."
        ),
    ),
    looks_at="available memory and swap on disks, against an estimate",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#4220",
        "NVIDIA/TensorRT#4582",
        "NVIDIA/TensorRT#2712",
        "NVIDIA/TensorRT#3355",
        "dusty-nv/jetson-containers#598",
    ),
)
