# SPDX-License-Identifier: Apache-2.0
"""The plugin library that a graph needs: named, there already, or built here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.device.board import Board
from stormrt.pipeline.device.records import FileDigest, PluginUse
from stormrt.pipeline.files import sha256_file
from stormrt.plugins.builder import CORE_NAME, build_library, is_intact, read_manifest
from stormrt.plugins.derive.cpp_header import source_digest
from stormrt.plugins.native import LIBRARY_VARIABLE


def plugin_libraries(plugins: Sequence[PluginUse], target: Board, folder: Path) -> tuple[Path, ...]:
    """The plugin library that a graph needs: the one named, one that fits, or one built here.

    Args:
        plugins: The graph's custom operators; none: no library is needed.
        target: The recipe of the board.
        folder: Where a library is built, and found again.

    Raises:
        InputError: ``STORMRT_PLUGIN_LIB`` names no file.
        EnvironmentMissingError: None is named, none fits, and there is no compiler to build one.
    """
    if not plugins:
        return ()
    named = os.environ.get(LIBRARY_VARIABLE)
    if not named:
        return (_own_library(target, folder),)
    if not Path(named).is_file():
        uses = ", ".join(f"{p.name} (version {p.version})" for p in plugins)
        raise InputError(
            "the plugin library does not exist",
            where=f"environment variable {LIBRARY_VARIABLE}",
            got=named,
            expected=f"the path of a library with {uses}",
            fix=f"unset {LIBRARY_VARIABLE}, and one is built for {target.id}",
        )
    return (Path(named),)


def _own_library(target: Board, folder: Path) -> Path:
    try:
        return build_library(folder, (target.device.sm,)).core
    except EnvironmentMissingError as missing:
        # A board without nvcc can use what another board of its kind has compiled.
        found = fitting_library(folder, target.device.sm)
        if found is None:
            raise EnvironmentMissingError(
                missing.what,
                where=missing.where,
                got=missing.got,
                expected=missing.expected,
                fix=f"{missing.fix}. Or copy the folder of a library that `stormrt plugins build "
                f"--target {target.id}` made on a board like this one to {folder}",
            ) from missing
        return found


def fitting_library(folder: Path, sm: int) -> Path | None:
    """A library in a folder that was built from these sources for a GPU and this CPU, if any."""
    manifest = read_manifest(folder)
    if (
        manifest is None
        or manifest.sources != source_digest()
        or manifest.machine != platform.machine()
        or f"sm_{sm}" not in manifest.archs
        or not is_intact(folder, manifest)
    ):
        return None
    return folder / CORE_NAME


def library_digests(libraries: Sequence[Path]) -> tuple[FileDigest, ...]:
    """What an engine's record says of the plugin libraries that it was built with."""
    return tuple(FileDigest(p.name, sha256_file(p), p.stat().st_size) for p in libraries)
