# SPDX-License-Identifier: Apache-2.0
"""Machines that are made up, as the doctor's checks see them."""

from __future__ import annotations

import struct
from pathlib import Path

from stormrt.pipeline.doctor.complaint import Finding
from stormrt.pipeline.doctor.complaints import COMPLAINTS
from stormrt.pipeline.doctor.examine import examine
from stormrt.pipeline.doctor.facts import Facts, LibraryFacts, Loading, Memory
from stormrt.pipeline.doctor.subject import Subject
from stormrt.pipeline.probe import CudaDriver, Gpu, Jetson, Machine

T4 = Gpu(0, "Tesla T4", 75, 40, 14912)
ORIN = Gpu(0, "Orin", 87, 8, 7620)
LAPTOP = Gpu(0, "NVIDIA GeForce RTX 4060 Laptop GPU", 89, 24, 7900)
NANO = Jetson("NVIDIA Jetson Orin Nano Developer Kit", "36.4.3", "6.2", "MAXN_SUPER")
NANO_MODES = ((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"))


def machine(
    gpu: Gpu | None = T4,
    jetson: Jetson | None = None,
    *,
    arch: str | None = None,
    cuda: str | None = "13.0",
    reason: str | None = None,
) -> Machine:
    gpus = () if gpu is None else (gpu,)
    if gpu is None and reason is None:
        cuda, reason = None, "no CUDA driver on this machine"
    return Machine(
        system="Linux 6.8",
        arch=arch or ("aarch64" if jetson else "x86_64"),
        python="3.10.12",
        cpu="a CPU",
        cpu_count=6,
        memory_mib=7620 if jetson else 16000,
        packages=(),
        cuda=CudaDriver(cuda, "580.82", gpus, reason),
        jetson=jetson,
        nvcc=None,
    )


def facts(**changes: object) -> Facts:
    """A T4 on which nothing is wrong, or with what a test changes."""
    values: dict[str, object] = {
        "machine": machine(),
        "power_modes": (),
        "memory": Memory(12000, 0),
        "free_disk_mib": 100_000,
        "installations": (),
        "loading": {"tensorrt": Loading("10.13.3.9", None)},
        "library": None,
        "subject": None,
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]  # by name, from a table


def orin(**changes: object) -> Facts:
    """An Orin Nano with JetPack 6.2 on which nothing is wrong, or with what a test changes."""
    values: dict[str, object] = {
        "machine": machine(ORIN, NANO, cuda="12.6"),
        "power_modes": NANO_MODES,
        "memory": Memory(6000, 8192),
        "loading": {"tensorrt": Loading("10.3.0", None)},
    }
    return facts(**{**values, **changes})


def finding(name: str, seen: Facts) -> Finding:
    """What one complaint's check says."""
    (diagnosis,) = examine(seen, [c for c in COMPLAINTS if c.id == name])
    return diagnosis.finding


def library(
    *codes: str, headers: str = "10.3.0", arch: str = "aarch64", exists: bool = True
) -> LibraryFacts:
    return LibraryFacts(
        Path("plugins/libstormrt_plugins.so"), exists, arch if exists else None, codes, headers
    )


def subject(**parts: object) -> Subject:
    """Something that is asked about, of which little is known."""
    values: dict[str, object] = dict.fromkeys(
        ("manifest", "record", "header", "report", "graph"), None
    )
    values |= {"path": Path("engine.plan"), "folder": Path()}
    return Subject(**{**values, **parts})  # type: ignore[arg-type]  # by name, from a table


def plan(tag: bytes = b"ftrt", version: tuple[int, ...] = (10, 3, 0, 30), layout: int = 0) -> bytes:
    """The beginning of a plan."""
    return tag + struct.pack("<I", layout) + bytes(16) + bytes(version) + bytes(64)
