# SPDX-License-Identifier: Apache-2.0
"""What an engine was built for, and whether that is what is here.

A plan runs on the kind of GPU and with the very TensorRT that built it, and its plugin nodes with
the library that it was timed with: the plan holds numbers of tactics. TensorRT finds the first two
out itself, in its own words and after seconds; a wrong plugin library it does not find at all.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import EngineArtifact, FileDigest
from stormrt.pipeline.engine_api import PRODUCT_NAMES
from stormrt.pipeline.files import sha256_file
from stormrt.pipeline.probe import format_sm
from stormrt.pipeline.schema import FP16_ENGINE_NAME, MANIFEST_NAME, Manifest
from stormrt.plugins.builder import CORE_NAME
from stormrt.plugins.native import LIBRARY_VARIABLE
from stormrt.targets import RuntimeName

LIBRARY_PLACES = ("plugins", ".stormrt/plugins")
"""Folders of an output folder in which a build on the target leaves the plugin library."""


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
        runtime=cast("RuntimeName", engine.runtime),
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
