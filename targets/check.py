# SPDX-License-Identifier: Apache-2.0
"""Is this machine the board of a recipe? Facts of the two, side by side, and which of them matter.

What matters is what an engine of the recipe needs: the GPU's generation, the CPU, TensorRT,
JetPack, and the memory that the workspace was chosen for. Another card of the same generation is
told, and is no fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from stormrt.runtime_name import RuntimeName
from stormrt.targets.schema import JetPack, RuntimeRecipe, Target

Status = Literal["same", "differs", "unknown"]

_LEAST_MEMORY = 0.8
"""Share of the nominal memory that must be there. Firmware and ECC take some: CUDA sees 14486 of an
Orin NX's 16384 MiB, 0.88."""
_MOST_MEMORY = 1.1
"""A share above this is of another module or card."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This machine, as far as a recipe speaks of it. None is what it does not tell."""

    gpu: str
    """The CUDA driver's name."""
    sm: int
    """Compute capability times ten."""
    sm_count: int
    arch: str
    """As ``uname -m`` names it."""
    memory_mib: int
    """What the GPU can reach."""
    is_jetson: bool
    board: str | None
    """The Jetson's model, from the device tree."""
    jetpack: str | None
    l4t: str | None
    runtimes: tuple[tuple[RuntimeName, str | None], ...]
    """Installed runtimes and their versions."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One fact of a recipe beside the machine's."""

    what: str
    recipe: str
    machine: str
    status: Status
    matters: bool
    """Whether a difference of this kind keeps engines of the recipe from running here."""
    note: str
    """What a difference means; empty where there is none to explain."""

    @property
    def is_fault(self) -> bool:
        """It differs, and that matters."""
        return self.status == "differs" and self.matters


def compare(target: Target, machine: MachineFacts) -> tuple[Comparison, ...]:
    """Compare a recipe with a machine, fact by fact."""
    device = target.device
    return (
        _equal(
            "compute capability",
            target.compute_capability,
            f"{machine.sm // 10}.{machine.sm % 10}",
            matters=True,
            note="an engine runs only on the compute capability that it was built for",
        ),
        _equal(
            "CPU",
            device.arch,
            machine.arch,
            matters=True,
            note="the plugin library and the runtime are for another CPU",
        ),
        _gpu(target, machine),
        _sm_count(target, machine),
        _memory(target, machine),
        *_jetpack(target, machine),
        *_runtimes(target, machine),
    )


def fits(comparisons: tuple[Comparison, ...]) -> bool:
    """Whether nothing that matters differs. What is unknown is no difference."""
    return not any(c.is_fault for c in comparisons)


def distance(comparisons: tuple[Comparison, ...]) -> tuple[int, int]:
    """How far a machine is from a recipe: differences that matter, and others. Less is nearer."""
    differing = [c for c in comparisons if c.status == "differs"]
    return sum(c.matters for c in differing), sum(not c.matters for c in differing)


def _equal(what: str, recipe: str, machine: str, *, matters: bool, note: str) -> Comparison:
    same = recipe == machine
    return Comparison(
        what, recipe, machine, "same" if same else "differs", matters, "" if same else note
    )


def _gpu(target: Target, machine: MachineFacts) -> Comparison:
    if target.software.jetpack:
        return _board(target, machine)
    # "Tesla T4" on older drivers: the last word is the card.
    same = target.device.gpu.split()[-1] == machine.gpu.split()[-1]
    return Comparison(
        "GPU",
        target.device.gpu,
        machine.gpu,
        "same" if same else "differs",
        matters=False,
        note="" if same else "another card: a recipe of its own knows its memory",
    )


def _board(target: Target, machine: MachineFacts) -> Comparison:
    """The module, by the device tree: the CUDA driver calls every Orin "Orin"."""
    if machine.is_jetson and machine.board is None:
        return Comparison(
            "board", target.description, machine.gpu, "unknown", matters=False, note=""
        )
    # "Jetson Orin NX 16 GB" -> "Orin NX", as in "NVIDIA Jetson Orin NX ... Developer Kit".
    module = re.sub(r"^Jetson | \d+ GB$", "", target.description)
    same = machine.board is not None and module in machine.board
    return Comparison(
        "board",
        target.description,
        machine.board or machine.gpu,
        "same" if same else "differs",
        matters=False,
        note="" if same else "another module, or a carrier board with a name of its own",
    )


def _sm_count(target: Target, machine: MachineFacts) -> Comparison:
    recipe, found = target.device.sm_count, machine.sm_count
    note = ""
    if recipe != found:
        note = "another card or module"
        if machine.is_jetson and found < recipe:
            note += ", or a power mode that switches multiprocessors off (nvpmodel -q)"
    return Comparison(
        "multiprocessors",
        str(recipe),
        str(found),
        "same" if recipe == found else "differs",
        matters=False,
        note=note,
    )


def _memory(target: Target, machine: MachineFacts) -> Comparison:
    nominal = target.device.memory_mib
    share = machine.memory_mib / nominal
    status: Status = "same" if _LEAST_MEMORY <= share <= _MOST_MEMORY else "differs"
    less = share < _LEAST_MEMORY
    note = ""
    if less:
        note = f"the builder may take up to {target.build.workspace_mib} MiB: choose another recipe"
    elif status == "differs":
        note = "another card or module"
    return Comparison(
        "memory",
        f"{nominal} MiB (nominal)",
        f"{machine.memory_mib} MiB",
        status,
        matters=less,
        note=note,
    )


def _jetpack(target: Target, machine: MachineFacts) -> tuple[Comparison, ...]:
    releases = target.software.jetpack
    if not releases and not machine.is_jetson:
        return ()
    recipe = ", ".join(r.version for r in releases) or "none: no Jetson"
    if not releases or not machine.is_jetson:
        found = "none: no Jetson" if not machine.is_jetson else f"L4T {machine.l4t or 'unknown'}"
        note = "this machine is no Jetson" if releases else "this machine is a Jetson"
        return (Comparison("JetPack", recipe, found, "differs", matters=True, note=note),)
    if machine.jetpack is None:
        note = f"the package nvidia-jetpack is not installed; L4T is {machine.l4t or 'unknown'}"
        return (Comparison("JetPack", recipe, "unknown", "unknown", matters=True, note=note),)
    release = _release(releases, machine.jetpack)
    if release is None:
        note = "not one of those that the recipe knows"
        return (Comparison("JetPack", recipe, machine.jetpack, "differs", matters=True, note=note),)
    row = Comparison("JetPack", recipe, machine.jetpack, "same", matters=True, note="")
    version = dict(machine.runtimes).get("tensorrt")
    if version is None or _allows(release.tensorrt, version) is not False:
        return (row,)
    pair = Comparison(
        f"TensorRT of JetPack {release.version}",
        release.tensorrt,
        version,
        "differs",
        matters=True,
        note="JetPack does not support this TensorRT",
    )
    return row, pair


def _release(releases: tuple[JetPack, ...], installed: str) -> JetPack | None:
    """The newest release of a recipe that an installed one is, or is an update of."""
    try:
        version = Version(installed)
    except InvalidVersion:
        return None
    known = [
        r
        for r in releases
        if Version(r.version).release[:2] == version.release[:2] and Version(r.version) <= version
    ]
    return max(known, key=lambda r: Version(r.version), default=None)


def _runtimes(target: Target, machine: MachineFacts) -> tuple[Comparison, ...]:
    installed = dict(machine.runtimes)
    any_there = any(r.name in installed for r in target.runtimes)
    return tuple(
        _runtime(recipe, recipe.name in installed, installed.get(recipe.name), any_there)
        for recipe in target.runtimes
    )


def _runtime(
    recipe: RuntimeRecipe, is_there: bool, version: str | None, any_there: bool
) -> Comparison:
    if not is_there:
        return Comparison(
            recipe.name,
            recipe.version,
            "not installed",
            "differs",
            matters=not any_there,
            note="another runtime of the recipe is" if any_there else "see stormrt doctor",
        )
    allowed = None if version is None else _allows(recipe.version, version)
    if version is None or allowed is None:
        shown = "unknown version" if version is None else version
        return Comparison(recipe.name, recipe.version, shown, "unknown", matters=True, note="")
    return Comparison(
        recipe.name,
        recipe.version,
        version,
        "same" if allowed else "differs",
        matters=True,
        note="" if allowed else "this version is not supported on the board",
    )


def _allows(specifier: str, version: str) -> bool | None:
    try:
        parsed = Version(version)
    except InvalidVersion:
        return None
    # prereleases: JetPack's packages are sometimes release candidates of the version they name.
    return SpecifierSet(specifier).contains(parsed, prereleases=True)
