# SPDX-License-Identifier: Apache-2.0
"""What an engine was built for, and whether that is what is here.

A plan runs on the kind of GPU and with the very TensorRT that built it, and its plugin nodes with
the library that it was timed with: the plan holds numbers of tactics. TensorRT finds the first two
out itself, in its own words and after seconds; a wrong plugin library it does not find at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stormrt.errors import InputError
from stormrt.pipeline.engine_api import PRODUCT_NAMES
from stormrt.pipeline.files import sha256_file
from stormrt.pipeline.probe import format_sm

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName


@dataclass(frozen=True, slots=True)
class PluginLibrary:
    """A library with an engine's plugins."""

    path: Path
    sha256: str | None
    """Of the library that the engine was built with; None where nobody wrote it down."""


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine, and what is known of how it was built."""

    plan: Path
    runtime: RuntimeName
    plugins: tuple[PluginLibrary, ...]
    rebuild: str
    """What to type to build it for this machine."""
    sha256: str | None = None
    """Of the plan. This and what follows is None for a plan without a manifest."""
    version: str | None = None
    """The runtime's version."""
    sm: int | None = None
    """Compute capability of the GPU, times ten."""
    target: str | None = None
    """The board that it was built for."""
    runtime_cache: Path | None = None
    """Where TensorRT-RTX keeps the kernels that it compiles for this GPU; None: nowhere."""


def check_gpu(record: EngineRecord, name: str, sm: int) -> None:
    """Check that a GPU is of the kind that an engine was built for.

    Raises:
        InputError: It is not.
    """
    if record.sm is not None and sm != record.sm:
        raise InputError(
            "the engine is for another GPU",
            where=str(record.plan),
            got=f"{name}, {format_sm(sm)}",
            expected=f"{format_sm(record.sm)} ({record.target})",
            fix="build one for this GPU: stormrt build --target TARGET "
            "(`stormrt targets list` says which)",
        )


def check_version(record: EngineRecord, version: str) -> None:
    """Check that the runtime is the one that built an engine.

    Raises:
        InputError: It is another version.
    """
    if record.version is not None and version != record.version:
        product = PRODUCT_NAMES[record.runtime]
        raise InputError(
            f"the engine was built by another version of {product}",
            where=str(record.plan),
            got=f"{product} {version}",
            expected=f"{product} {record.version}",
            fix=f"build it again with the {product} that is installed: {record.rebuild}",
        )


def check_files(record: EngineRecord) -> None:
    """Check that the plan and its plugin libraries are the files that the build made.

    Raises:
        InputError: One is missing, or is another.
    """
    if not record.plan.is_file():
        raise InputError("the engine's file is missing", where=str(record.plan), fix=record.rebuild)
    _check_digest(
        record.plan,
        record.sha256,
        "the engine is not the one that its manifest describes",
        f"copy the folder again, or build it again: {record.rebuild}",
    )
    for library in record.plugins:
        if not library.path.is_file():
            raise InputError(
                "the plugin library does not exist", where=str(library.path), fix=record.rebuild
            )
        _check_digest(
            library.path,
            library.sha256,
            "the engine was built with another plugin library",
            f"give the library with that digest, or build the engine again: {record.rebuild}",
        )


def _check_digest(path: Path, expected: str | None, what: str, fix: str) -> None:
    if expected is None:
        return
    found = sha256_file(path)
    if found != expected:
        raise InputError(
            what,
            where=str(path),
            got=f"SHA-256 {found}",
            expected=f"SHA-256 {expected}",
            fix=fix,
        )
