# SPDX-License-Identifier: Apache-2.0
"""The device phase: a bundle becomes an engine, with NumPy and the runtime alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import EngineArtifact, FileDigest, PluginUse
from stormrt.pipeline.engine import build_engine, require_gpu
from stormrt.pipeline.files import folder_lock, sha256_file, write_text
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    FP16_MODEL_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    Manifest,
)
from stormrt.plugins.builder import build_library
from stormrt.plugins.native import LIBRARY_VARIABLE
from stormrt.targets import RuntimeName, Target, parse_target

PLUGIN_FOLDER = "plugins"
"""Folder of a bundle in which its plugin library is built, on the target."""


def read_bundle(folder: Path) -> tuple[Manifest, Target]:
    """Read a bundle's manifest and check every file in it against its digest.

    Raises:
        InputError: The folder is no bundle, or a file is missing or has changed.
    """
    manifest = Manifest.read(folder / MANIFEST_NAME)
    for entry in manifest.files:
        path = folder / entry.name
        if not path.is_file():
            raise InputError("a file of the bundle is missing", where=str(path))
        found = sha256_file(path)
        if found != entry.sha256:
            raise InputError(
                "a file of the bundle has changed since it was made",
                where=str(path),
                got=f"SHA-256 {found}",
                expected=entry.sha256,
                fix="copy the folder again, or build it again on the workstation",
            )
    return manifest, parse_target(manifest.recipe, origin=str(folder / MANIFEST_NAME))


def plugin_libraries(
    plugins: tuple[PluginUse, ...], target: Target, folder: Path
) -> tuple[Path, ...]:
    """The plugin library that a graph needs: the one named, or one built here.

    Args:
        plugins: The graph's custom operators; none: no library is needed.
        target: The recipe of the board.
        folder: Where a library is built, and found again.

    Raises:
        InputError: ``STORMRT_PLUGIN_LIB`` names no file.
        EnvironmentMissingError: None is named, and there is no compiler to build one.
    """
    if not plugins:
        return ()
    named = os.environ.get(LIBRARY_VARIABLE)
    if not named:
        return (build_library(folder, (target.device.sm,)).core,)
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


def library_digests(libraries: tuple[Path, ...]) -> tuple[FileDigest, ...]:
    """What an engine's record says of the plugin libraries that it was built with."""
    return tuple(FileDigest(p.name, sha256_file(p), p.stat().st_size) for p in libraries)


def build_bundle(
    folder: Path,
    *,
    runtime: RuntimeName | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Build the engine of a bundle on this machine.

    Args:
        folder: An output folder of ``stormrt build``.
        runtime: The runtime to build with; the bundle's own unless given. It must take the
            bundle's lowering.
        on_progress: Called as the builder goes on.

    Returns:
        The manifest, now with the engine.

    Raises:
        InputError: The bundle is damaged, or the runtime takes another lowering.
        EnvironmentMissingError: The runtime, the plugin library or the target's GPU is missing.
    """
    manifest, target = read_bundle(folder)
    if manifest.refused is not None:
        raise InputError(
            "the gate refused this bundle's INT8 graph, so that no engine is built from it",
            where=str(folder),
            got=manifest.refused,
            fix="build the bundle again with --precision fp16, or with a better calibration",
        )
    recipe = target.runtime(runtime or manifest.runtime)
    if recipe.lowering != manifest.lowering:
        raise InputError(
            f"the bundle's graph is in its {manifest.lowering} lowering, and {recipe.name} takes "
            f"the {recipe.lowering} lowering",
            where=str(folder / MODEL_NAME),
            fix=f"build the bundle again with --runtime {recipe.name}",
        )
    command = f"stormrt build {shlex.quote(str(folder))}"
    if recipe.name == "tensorrt":
        require_gpu(target, command)  # before a library is compiled for a GPU that is not here
    most = manifest.model.batch if manifest.model.dynamic_batch else None

    def engine_of(model: str, name: str) -> EngineArtifact:
        libraries = plugin_libraries(manifest.plugins, target, folder / PLUGIN_FOLDER)
        result = build_engine(
            folder / model,
            runtime=recipe.name,
            target=target,
            out=folder / name,
            plugin_libraries=libraries,
            progress=on_progress,
            board_command=command,
            max_batch=most,
        )
        file = FileDigest(name, result.sha256, result.size_bytes)
        return EngineArtifact(
            file, result.runtime, result.runtime_version, result.sm, library_digests(libraries)
        )

    with folder_lock(folder / ".stormrt"):
        made = [engine_of(MODEL_NAME, ENGINE_NAME)]
        fp16 = manifest.fp16
        if fp16 is not None:
            made.append(engine_of(FP16_MODEL_NAME, FP16_ENGINE_NAME))
            fp16 = fp16.model_copy(update={"engine": made[1]})
        names = [engine.file.name for engine in made]
        kept = tuple(f for f in manifest.files if f.name not in names)
        updated = manifest.model_copy(
            update={
                "engine": made[0],
                "fp16": fp16,
                "files": (*kept, *(engine.file for engine in made)),
                "runtime": recipe.name,
            }
        )
        write_text(folder / MANIFEST_NAME, updated.to_json())
    return updated
