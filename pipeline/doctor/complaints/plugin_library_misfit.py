# SPDX-License-Identifier: Apache-2.0
"""A plugin library is for another TensorRT, GPU or CPU."""

from __future__ import annotations

from stormrt.errors import StormrtError
from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts, LibraryFacts
from stormrt.pipeline.doctor.versions import numbers

_BUILD = "stormrt plugins build --force"


def _check(facts: Facts) -> Finding:
    library = facts.library
    if library is None or not library.exists:
        return cannot_tell("no plugin library is named (STORMRT_PLUGIN_LIB) or lies beside")
    if library.arch is not None and library.arch != facts.machine.arch:
        return problem(f"it is for {library.arch}, this is {facts.machine.arch}", _BUILD)
    digest = _other_than_built_with(facts)
    if digest is not None:
        return digest
    if library.codes is None:
        return cannot_tell("libstormrt_plugins.json is not beside it; stormrt plugins check")
    version = facts.version()
    headers = numbers(library.headers or "")
    if version and headers and version[0] != headers[0]:
        return problem(f"compiled against TensorRT {library.headers}, here is {version[0]}", _BUILD)
    gpu = facts.gpu
    if gpu is not None and not _runs_on(library, gpu.sm):
        return problem(f"compiled for {' '.join(library.codes)}; this is sm_{gpu.sm}", _BUILD)
    told = f"{' '.join(library.codes)}, headers of TensorRT {library.headers}"
    if gpu is None or version is None:
        return cannot_tell(f"{told}; the GPU or TensorRT is not here")
    return ok(told)


def _other_than_built_with(facts: Facts) -> Finding | None:
    record = facts.subject.record if facts.subject else None
    if record is None or not record.plugins:
        return None
    from stormrt.runtime.record import check_files

    try:
        check_files(record)
    except StormrtError as error:
        return problem(error.what, error.fix)
    return None


def _runs_on(library: LibraryFacts, sm: int) -> bool:
    """Machine code runs on its own generation from its number on, PTX on all later GPUs."""
    for code in library.codes or ():
        kind, _, number = code.partition("_")
        if not number.isdigit() or int(number) > sm:
            continue
        if kind == "compute" or int(number) // 10 == sm // 10:
            return True
    return False


COMPLAINT = Complaint(
    id="plugin-library-misfit",
    title="The plugin library does not load, or crashes",
    spoils="loading engines with plugin nodes",
    symptoms=(
        "SymbolAddress for getCreators could not be loaded",
        "SymbolAddress for getPluginCreators",
        "no kernel image is available for execution on the device",
        "undefined symbol: getPluginRegistry",
        "TensorRT does not load the plugin library",
        "the engine was built with another plugin library",
        "the plugin library was built from other contracts",
        "wrong ELF class",
        "Segmentation fault",
    ),
    cause="A library is for one CPU, one major version of TensorRT and some GPUs, and an engine "
    "for the very library that it was timed with. A statically registering library of another "
    "major version crashes its host.",
    mend=(
        (
            "Compile it where it runs: `stormrt build BUNDLE/` does, or "
            "`stormrt plugins build --target TARGET`; then build the engine again."
        ),
        "`stormrt plugins check` loads it through each TensorRT here, in processes that may crash.",
        (
            "`--dynamicPlugins` and `load_library` take `libstormrt_plugins.so`; dlopen and "
            "`LD_PRELOAD` the autoload library "
            "([why there are two](adr/0008-plugin-library-layout.md))."
        ),
    ),
    looks_at="CPU in the library's header, GPUs and TensorRT in its manifest, its digest in the "
    "engine's manifest",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#4121",
        "NVIDIA/TensorRT#4051",
        "open-mmlab/mmdeploy#2628",
    ),
)
