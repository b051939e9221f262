# SPDX-License-Identifier: Apache-2.0
"""What the checks look at: the machine, its TensorRTs, its memory, and what is asked about.

Facts are gathered once, in one place, so that checks are functions of them and tests need no board.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stormrt.errors import StormrtError
from stormrt.pipeline import probe
from stormrt.pipeline.doctor import power
from stormrt.pipeline.doctor.power import PowerModes
from stormrt.pipeline.doctor.subject import Subject
from stormrt.pipeline.doctor.versions import numbers

_IMPORT_SECONDS = 60
_LIBRARY = re.compile(r"libnvinfer\.so\.(\d+(?:\.\d+)+)$")
_DISTRIBUTION = re.compile(r"(nvidia-)?tensorrt(-cu\d+)?(-libs|-bindings)?$")
_MACHINES = {62: "x86_64", 183: "aarch64"}
"""``e_machine`` of an ELF file (elf.h)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the machine in MiB."""

    available: int
    """What a program can have without swapping."""
    swap: int
    """Free swap on disks. Swap in compressed memory (zram) is left out: it is no more memory."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A TensorRT that was found."""

    where: str
    version: str


@dataclass(frozen=True, slots=True)
class Loading:
    """What happened when a runtime was imported, in a process of its own."""

    version: str | None
    """None: it did not load."""
    problem: str | None


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """A plugin library."""

    path: Path
    exists: bool
    arch: str | None
    """The CPU's instruction set; None where the file is no library."""
    codes: tuple[str, ...] | None
    """``sm_87``, ``compute_75``; None without the manifest that a build leaves beside it."""
    headers: str | None
    """TensorRT's version that it was compiled against."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the checks may look at."""

    machine: probe.Machine
    power_modes: PowerModes
    memory: Memory | None
    free_disk_mib: int | None
    """Where an engine would be written."""
    installations: tuple[Installation, ...]
    loading: dict[str, Loading]
    """By module, ``tensorrt`` and ``tensorrt_rtx``; one that is not installed is not here."""
    library: LibraryFacts | None
    """The plugin library that is named or lies beside what is asked about."""
    subject: Subject | None
    """What is asked about; None: the machine."""

    @property
    def gpu(self) -> probe.Gpu | None:
        """The GPU that a process gets."""
        gpus = self.machine.cuda.gpus
        return gpus[0] if gpus else None

    def version(self, runtime: str = "tensorrt") -> tuple[int, ...] | None:
        """The version of a runtime that loads here."""
        loaded = self.loading.get(runtime)
        return numbers(loaded.version) if loaded and loaded.version else None


def gather(subject: Subject | None = None) -> Facts:
    """Look at this machine. Nothing is changed; no runtime is imported into this process."""
    modules = ("tensorrt", "tensorrt_rtx")
    folder = subject.folder if subject else Path.cwd()
    return Facts(
        machine=probe.probe_machine(),
        power_modes=power.power_modes(),
        memory=memory(),
        free_disk_mib=_free_disk(folder),
        installations=installations(),
        loading={m: load(m) for m in modules if probe.installed_version(m.replace("_", "-"))},
        library=_library(subject),
        subject=subject,
    )


def memory(root: Path = Path("/")) -> Memory | None:
    """Read how much memory is left; None where the kernel does not tell."""
    try:
        available = re.search(
            r"^MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE
        )
        lines = (root / "proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return None
    if available is None:
        return None
    # Filename, type, size, used, priority; sizes in KiB.
    rows = [line.split() for line in lines]
    disks = [row for row in rows if len(row) >= 4 and "zram" not in row[0]]
    swap = sum(int(row[2]) - int(row[3]) for row in disks)
    return Memory(int(available[1]) >> 10, swap >> 10)


def _free_disk(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free >> 20
    except OSError:
        return None


def installations(folders: Iterable[Path] | None = None) -> tuple[Installation, ...]:
    """Find the TensorRTs that Python and the loader could take.

    Args:
        folders: Where shared libraries are looked for; the loader's usual places unless given.
    """
    found = []
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if _DISTRIBUTION.match(name):
            found.append(Installation(f"Python package {name}", version))
    seen = set()
    for folder in library_folders() if folders is None else folders:
        for path in _listing(folder):
            match = _LIBRARY.match(path.name)
            if match and (real := path.resolve()) not in seen:
                seen.add(real)
                found.append(Installation(str(path), match[1]))
    return tuple(found)


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        name, version = distribution.metadata["Name"], distribution.version
    except (AttributeError, KeyError, TypeError, OSError):
        return "", probe.UNKNOWN  # half removed: a folder without its metadata
    return (name or "").lower().replace("_", "-"), version or probe.UNKNOWN


def library_folders() -> tuple[Path, ...]:
    """Where the loader finds shared libraries, and where TensorRT is usually unpacked."""
    named = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    usual = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib", "/usr/local/lib")
    unpacked = ("/usr/local/tensorrt/lib", "/opt/tensorrt/lib", "/usr/local/cuda/lib64")
    return (*named, *map(Path, (*usual, *unpacked)))


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("libnvinfer.so.*"))
    except OSError:
        return []


def load(module: str) -> Loading:
    """Import a runtime in a process of its own: a broken one may crash its host."""
    code = f"import {module}; print({module}.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Loading(None, str(error))
    if done.returncode == 0 and done.stdout.strip():
        return Loading(done.stdout.split()[-1], None)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Loading(None, f"the process died of {name} while importing it")
    return Loading(None, (done.stderr.strip().splitlines() or ["it has no version"])[-1])


def _library(subject: Subject | None) -> LibraryFacts | None:
    from stormrt.plugins.builder import CORE_NAME
    from stormrt.plugins.native import LIBRARY_VARIABLE

    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return library_facts(Path(named))
    record = subject.record if subject else None
    if record is not None and record.plugins:
        return library_facts(record.plugins[0].path)
    if subject is not None and (path := subject.folder / "plugins" / CORE_NAME).is_file():
        return library_facts(path)
    return None


def library_facts(path: Path) -> LibraryFacts:
    """Describe a plugin library without loading it."""
    from stormrt.plugins.builder import MANIFEST_NAME

    codes = headers = None
    try:
        told = json.loads((path.parent / MANIFEST_NAME).read_text())
        codes, headers = tuple(map(str, told["archs"])), str(told["tensorrt_headers"])
    except (OSError, ValueError, KeyError, TypeError, StormrtError):
        pass  # copied without its manifest: less can be told of it
    return LibraryFacts(path, path.is_file(), _elf_machine(path), codes, headers)


def _elf_machine(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(20)
    except OSError:
        return None
    if len(start) < 20 or start[:4] != b"\x7fELF":
        return None
    (number,) = struct.unpack("<H", start[18:20])
    return _MACHINES.get(number, f"ELF machine {number}")
