# SPDX-License-Identifier: Apache-2.0
"""Compile the plugin library, with nvcc alone: a Jetson needs neither CMake nor a network.

Two libraries come out, and a manifest. ``libstormrt_plugins.so`` is for hosts that load plugins
through TensorRT's registry, for PyTorch and for tests; ``libstormrt_plugins_autoload.so`` registers
the same plugins in hosts that only dlopen a library (docs/adr/0008). ``plugins/CMakeLists.txt``
builds the same for projects that use CMake.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stormrt.errors import InputError
from stormrt.locking import folder_lock
from stormrt.plugins.derive.cpp_header import (
    SOURCES,
    native_plugins,
    source_digest,
    write_headers,
)
from stormrt.plugins.toolchain import Toolchain, find_toolchain

CORE_NAME = "libstormrt_plugins.so"
AUTOLOAD_NAME = "libstormrt_plugins_autoload.so"
MANIFEST_NAME = "libstormrt_plugins.json"
WORK_FOLDER = ".build"
"""Beside them: what is compiled, and the lock."""
SCHEMA_VERSION = 1

DEFAULT_ARCHS = (75, 87, 90)
"""T4, Orin, and the GPU that the kernels are tested on."""
OLDEST_ARCH = 75
"""CUDA 13 compiles for nothing older."""

_COMMON_FLAGS = ("-std=c++17", "-O3")
_HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# Nothing of the static runtime or of libstdc++ shows; nothing is left undefined; TensorRT's
# registry keeps pointers into the library, so no dlclose may unmap it.
_LINK_FLAGS = ("--exclude-libs,ALL", "-z,defs", "-z,nodelete", "-z,relro", "-z,now")
_MAX_JOBS = 4
_ERROR_LINES = 30


@dataclass(frozen=True, slots=True)
class LibraryFile:
    """A file that was built."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """An operator that the library has."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class LibraryManifest:
    """What a plugin library was built from: its ``libstormrt_plugins.json``."""

    schema_version: int
    key: str
    """Digest of everything below but the files. Equal keys: the same library."""
    sources: str
    """Digest of the sources and the contracts."""
    archs: tuple[str, ...]
    """``sm_75`` is machine code for one GPU, ``compute_75`` is PTX for it and later ones."""
    machine: str
    """The CPU's instruction set."""
    tensorrt_headers: str
    nvcc: str
    host_compiler: str
    plugins: tuple[PluginEntry, ...]
    files: tuple[LibraryFile, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A library that is there."""

    core: Path
    autoload: Path
    manifest: LibraryManifest
    skipped: bool
    """Nothing had changed since it was built."""


def code_names(archs: Sequence[int]) -> tuple[str, ...]:
    """What a library for some GPUs holds: machine code for each, PTX for the first and the last.

    The first PTX serves GPUs between those named, the last one GPUs that are still to come. Both
    are compiled by the driver when the library is loaded for the first time.

    Raises:
        InputError: An architecture is unknown.

    Example:
        >>> code_names([87, 75])
        ('sm_75', 'compute_75', 'sm_87', 'compute_87')
    """
    wanted = sorted(set(archs))
    if not wanted or wanted[0] < OLDEST_ARCH:
        raise InputError(
            "the plugins are compiled for no such GPU",
            got=", ".join(map(str, wanted)) or "none",
            expected=f"compute capabilities times ten, from {OLDEST_ARCH}",
        )
    names = []
    for arch in wanted:
        names.append(f"sm_{arch}")
        if arch in (wanted[0], wanted[-1]):
            names.append(f"compute_{arch}")
    return tuple(names)


def read_manifest(folder: Path) -> LibraryManifest | None:
    """The manifest of a folder; None where there is none that this version can read."""
    try:
        raw = json.loads((folder / MANIFEST_NAME).read_text())
        if raw.pop("schema_version") != SCHEMA_VERSION:
            return None
        return LibraryManifest(
            schema_version=SCHEMA_VERSION,
            plugins=tuple(PluginEntry(**p) for p in raw.pop("plugins")),
            files=tuple(LibraryFile(**f) for f in raw.pop("files")),
            archs=tuple(raw.pop("archs")),
            **raw,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def build_library(
    out: Path,
    archs: Sequence[int] = DEFAULT_ARCHS,
    *,
    toolchain: Toolchain | None = None,
    sources: Path = SOURCES,
    force: bool = False,
    strict: bool = False,
) -> BuildResult:
    """Build both libraries, or find that they are there already.

    Files take their names when all are done, the manifest last. What a killed build has left goes
    with the next one. Of two builds into one folder the second waits for the first.

    Args:
        out: Their folder.
        archs: Compute capabilities times ten.
        toolchain: The compilers and headers; those of this machine unless given.
        sources: The folder of the operators.
        force: Build even if nothing has changed.
        strict: Take warnings for errors, as tests do. A board's compilers may warn of what those
            that the sources were tried with do not.

    Returns:
        The libraries.

    Raises:
        InputError: An architecture is unknown to us or to nvcc, a source does not compile, the
            folder cannot be written.
        EnvironmentMissingError: A compiler or TensorRT's headers are missing.
    """
    codes = code_names(archs)
    tools = toolchain or find_toolchain()
    _check_supported(tools, archs)
    facts: dict[str, Any] = {
        "sources": source_digest(sources),
        "archs": codes,
        "machine": platform.machine(),
        "tensorrt_headers": tools.headers.version_text,
        "nvcc": tools.nvcc_version,
        "host_compiler": f"g++ {tools.host_compiler_version}",
        "plugins": tuple(PluginEntry(s.name, s.version) for s in native_plugins(sources)),
    }
    flags = (*_COMMON_FLAGS, *_HOST_FLAGS, *_LINK_FLAGS, strict)
    key = hashlib.sha256(repr((SCHEMA_VERSION, flags, facts)).encode()).hexdigest()
    core, autoload = out / CORE_NAME, out / AUTOLOAD_NAME

    def there_already() -> BuildResult | None:
        found = read_manifest(out)
        if force or found is None or found.key != key or not is_intact(out, found):
            return None
        return BuildResult(core, autoload, found, skipped=True)

    work = out / WORK_FOLDER
    try:
        # Asked before anything is written: the folder may be read-only.
        if found := there_already():
            return found
        with folder_lock(work, wait=True), tempfile.TemporaryDirectory(dir=work) as scratch:
            if found := there_already():
                return found  # by the process that was waited for
            _sweep(work, keep=Path(scratch))
            built = _compile_and_link(Path(scratch), codes, tools, sources, strict=strict)
            files = tuple(_describe(path) for path in built)
            manifest = LibraryManifest(schema_version=SCHEMA_VERSION, key=key, files=files, **facts)
            text = Path(scratch) / MANIFEST_NAME
            text.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
            # Without a manifest a mixture of old and new files is never taken for a library.
            (out / MANIFEST_NAME).unlink(missing_ok=True)
            for path in (*built, text):
                os.replace(path, out / path.name)
    except OSError as error:
        raise InputError(
            "could not write the plugin library",
            where=str(error.filename or out),
            got=error.strerror or str(error),
            fix="check the folder's permissions and the free space, or choose another --out",
        ) from error
    return BuildResult(core, autoload, manifest, skipped=False)


def _sweep(work: Path, keep: Path) -> None:
    """Remove what builds that were killed have left."""
    for left in work.iterdir():
        if left.is_dir() and left != keep:
            shutil.rmtree(left)


def _check_supported(tools: Toolchain, archs: Sequence[int]) -> None:
    listed = subprocess.run(
        [tools.nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False
    ).stdout.split()
    missing = [str(a) for a in sorted(set(archs)) if f"sm_{a}" not in listed]
    if listed and missing:
        raise InputError(
            f"nvcc {tools.nvcc_version} does not compile for every GPU asked for",
            got=", ".join(missing),
            expected=", ".join(name[3:] for name in listed if name.startswith("sm_")),
        )


def _compile_and_link(
    scratch: Path, codes: Sequence[str], tools: Toolchain, sources: Path, *, strict: bool
) -> tuple[Path, Path]:
    generated = scratch / "generated"
    write_headers(generated, " ".join(codes), sources)
    base: list[str | Path] = [
        tools.nvcc,
        f"-ccbin={tools.host_compiler}",
        *_COMMON_FLAGS,
        "-Xcompiler=" + ",".join((*_HOST_FLAGS, *(("-Werror",) if strict else ()))),
    ]
    includes: list[str | Path] = ["-I", sources, "-I", generated, "-isystem", tools.headers.folder]
    jobs = min(_MAX_JOBS, len(os.sched_getaffinity(0)))
    machine_code = [f"-gencode=arch={c.replace('sm_', 'compute_')},code={c}" for c in codes]

    def compile_one(source: Path) -> Path:
        target = scratch / f"{source.parent.name}_{source.name}.o"
        cuda = (
            [
                *(("-Werror=all-warnings",) if strict else ()),
                f"--threads={jobs}",
                *machine_code,
            ]
            if source.suffix == ".cu"
            else []
        )
        _run([*base, *includes, *cuda, "-c", source, "-o", target], about=str(source))
        return target

    core_sources = _sources(sources)
    # Kernels take longest: they start first.
    core_sources.sort(key=lambda path: path.suffix != ".cu")
    autoload_source = sources / "autoload/autoload.cpp"
    stub_source = sources / "autoload/nvinfer_stub.cpp"
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, [*core_sources, autoload_source, stub_source]))
    *core_objects, autoload_object, stub_object = objects

    def link(target: Path, inputs: Sequence[str | Path], soname: str, *extra: str) -> None:
        linker = ",".join((*_LINK_FLAGS, f"-soname,{soname}", *extra))
        command = [*base, "-shared", "--cudart=static", f"-Xlinker={linker}", "-o", target]
        _run([*command, *inputs], about=target.name)

    core, autoload = scratch / CORE_NAME, scratch / AUTOLOAD_NAME
    link(core, core_objects, CORE_NAME)
    stub = scratch / "libnvinfer.so"
    link(stub, [stub_object], f"libnvinfer.so.{tools.headers.version[0]}")
    link(
        autoload,
        [autoload_object, f"-L{scratch}", "-lstormrt_plugins", "-lnvinfer"],
        AUTOLOAD_NAME,
        "--no-as-needed",
        "-rpath,$ORIGIN",
    )
    return core, autoload


def _sources(sources: Path) -> list[Path]:
    folders = ["common", *(spec.torch_name for spec in native_plugins(sources))]
    return [
        path
        for folder in folders
        for path in sorted((sources / folder).iterdir())
        if path.suffix in (".cpp", ".cu")
    ]


def _run(command: Sequence[str | Path], *, about: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stderr + done.stdout).strip().splitlines()
        raise InputError(
            "the plugin library does not compile",
            where=about,
            got="\n    ".join(["", *output[:_ERROR_LINES]]) or f"exit code {done.returncode}",
            fix="the command was: " + " ".join(map(str, command)),
        )


def _describe(path: Path) -> LibraryFile:
    data = path.read_bytes()
    return LibraryFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def is_intact(folder: Path, manifest: LibraryManifest) -> bool:
    """Whether a folder holds the very files that its manifest names."""
    paths = [folder / entry.name for entry in manifest.files]
    return all(path.is_file() for path in paths) and all(
        _describe(path) == entry for path, entry in zip(paths, manifest.files, strict=True)
    )
