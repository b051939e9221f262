# SPDX-License-Identifier: Apache-2.0
"""An output folder -> what is known of its engine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import EngineArtifact, FileDigest
from stormrt.pipeline.schema import FP16_ENGINE_NAME, MANIFEST_NAME, Manifest
from stormrt.plugins.builder import CORE_NAME
from stormrt.plugins.native import LIBRARY_VARIABLE
from stormrt.runtime.record import EngineRecord, PluginLibrary
from stormrt.targets import RuntimeName

LIBRARY_PLACES = ("plugins", ".stormrt/plugins")
"""Folders of an output folder in which a build on the target leaves the plugin library."""


def read_record(
    path: Path,
    runtime: RuntimeName | None = None,
    plugin_libraries: Sequence[Path] | None = None,
) -> EngineRecord:
    """Read what is known of an engine.

    Args:
        path: An output folder of ``stormrt build``, or a plan. A plan that the manifest beside it
            describes is as good as its folder.
        runtime: What built the plan, where no manifest says so; else it must be that.
        plugin_libraries: Instead of the libraries that the manifest names. They must be the same.

    Raises:
        InputError: There is no engine, the manifest is damaged, or it does not fit an argument.
    """
    folder = path if path.is_dir() else path.parent
    manifest_path = folder / MANIFEST_NAME
    if path.is_dir() or manifest_path.is_file():
        manifest = Manifest.read(manifest_path)
        # An INT8 build has a second engine beside the first, in FP16.
        engines = [manifest.engine, manifest.fp16.engine if manifest.fp16 else None]
        named = [e for e in engines if e is not None and e.file.name == path.name]
        if path.is_dir() or named:
            engine = named[0] if named else _folders_engine(manifest, folder)
            return _from_manifest(manifest, engine, folder, runtime, plugin_libraries)
    if not path.is_file():
        raise InputError(
            "there is no such engine",
            where=str(path),
            expected="an output folder of `stormrt build`, or an engine.plan",
        )
    return EngineRecord(
        plan=path,
        runtime=runtime or "tensorrt",
        plugins=tuple(PluginLibrary(p, None) for p in plugin_libraries or ()),
        rebuild="stormrt build --model MODEL --target TARGET --out FOLDER",
    )


def _folders_engine(manifest: Manifest, folder: Path) -> EngineArtifact:
    if manifest.engine is not None:
        return manifest.engine
    if manifest.refused is not None:
        raise InputError(
            "the folder's INT8 engine was refused when it was built",
            where=str(folder),
            got=manifest.refused,
            fix=f"load the FP16 engine beside it: {folder / FP16_ENGINE_NAME}"
            if manifest.fp16 and manifest.fp16.engine
            else "build with --precision fp16",
        )
    raise InputError(
        "the folder is a bundle: its engine is not built yet",
        where=str(folder),
        fix=f"run here, on the {manifest.target}: {_rebuild(folder)}",
    )


def _rebuild(folder: Path) -> str:
    return f"stormrt build {shlex.quote(str(folder))}"


def _from_manifest(
    manifest: Manifest,
    engine: EngineArtifact,
    folder: Path,
    runtime: RuntimeName | None,
    plugin_libraries: Sequence[Path] | None,
) -> EngineRecord:
    rebuild = _rebuild(folder)
    if runtime is not None and runtime != engine.runtime:
        raise InputError(
            "the engine was built by another runtime",
            where=str(folder / engine.file.name),
            got=f"runtime={runtime!r}",
            expected=engine.runtime,
            fix="leave the runtime out: the manifest names it",
        )
    plugins: tuple[PluginLibrary, ...] = ()
    if engine.runtime == "tensorrt" and manifest.plugins:
        recorded = recorded_libraries(engine)
        plugins = _find_libraries(recorded, folder, plugin_libraries, rebuild)
    return EngineRecord(
        plan=folder / engine.file.name,
        runtime=engine.runtime,
        plugins=plugins,
        rebuild=rebuild,
        sha256=engine.file.sha256,
        version=engine.runtime_version,
        sm=engine.sm,
        target=manifest.target,
    )


def recorded_libraries(engine: EngineArtifact) -> tuple[FileDigest, ...]:
    """The plugin libraries that an engine was built with; none where the build wrote none down."""
    return engine.plugin_libraries


def _find_libraries(
    recorded: Sequence[FileDigest],
    folder: Path,
    given: Sequence[Path] | None,
    rebuild: str,
) -> tuple[PluginLibrary, ...]:
    """The libraries of an engine with plugin nodes: those asked for, else those built with it."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if given is not None or named:
        paths = tuple(given) if given is not None else (Path(named or ""),)
    else:
        places = [folder / place / CORE_NAME for place in LIBRARY_PLACES]
        paths = tuple(p for p in places if p.is_file())[:1]
    if not paths:
        raise InputError(
            "the engine has plugin nodes, and there is no plugin library",
            where=str(folder),
            expected=f"{LIBRARY_PLACES[0]}/{CORE_NAME} in the folder, or its path in "
            f"{LIBRARY_VARIABLE}",
            fix=f"build both again: {rebuild}",
        )
    digests = {Path(entry.name).name: entry.sha256 for entry in recorded}
    return tuple(PluginLibrary(path, digests.get(path.name)) for path in paths)
