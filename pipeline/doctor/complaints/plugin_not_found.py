# SPDX-License-Identifier: Apache-2.0
"""An engine or a graph has plugin nodes, and nobody has loaded the plugins."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import (
    NO_SUBJECT,
    Complaint,
    Finding,
    cannot_tell,
    ok,
    problem,
)
from stormrt.pipeline.doctor.facts import Facts

_BUILD = "stormrt plugins build"


def _check(facts: Facts) -> Finding:
    library, subject = facts.library, facts.subject
    if subject is not None and subject.manifest is not None and not subject.manifest.plugins:
        return ok("the graph has no plugin nodes")
    if library is not None and not library.exists:
        return problem(f"{library.path} does not exist", _BUILD)
    if library is not None and library.arch is None:
        return problem(f"{library.path} is no shared library", _BUILD)
    if library is not None:
        return ok(f"there is {library.path}; whoever loads the engine has to load it first")
    if subject is None:
        return cannot_tell(NO_SUBJECT)
    if subject.manifest is None:
        return cannot_tell("there is no manifest beside it: what it needs is not told")
    if subject.record is None and subject.manifest.engine is None:
        return ok("not built yet: stormrt build compiles the plugin library on the target")
    return problem(
        "the engine has plugin nodes, and there is no plugin library",
        f"{_BUILD} --target {subject.manifest.target} --out {subject.folder / 'plugins'}",
    )


COMPLAINT = Complaint(
    id="plugin-not-found",
    title="The plugin is not found",
    spoils="loading engines with plugin nodes",
    symptoms=(
        "Plugin not found, are the plugin name, version, and namespace correct",
        "getPluginCreator could not find plugin",
        "Cannot deserialize plugin since corresponding IPluginCreator not found in Plugin Registry",
        "No importer registered for op: SelectiveScan2D",
        "No importer registered for op: SpatialUnit",
        "the engine has plugin nodes, and there is no plugin library",
    ),
    cause="TensorRT knows an operator only after the process has loaded the library that has it. "
    "The engine does not carry the library.",
    mend=(
        (
            "Load it before the engine. `stormrt.runtime.Engine` and `stormrt/engine.hpp` do; "
            "trtexec takes `--dynamicPlugins=plugins/libstormrt_plugins.so`."
        ),
        (
            "Hosts that only dlopen (Isaac ROS, Triton, DeepStream) take "
            "`libstormrt_plugins_autoload.so`: `custom_plugin_lib`, "
            "`--backend-config=tensorrt,plugins=...`, `custom-lib-path`, else `LD_PRELOAD` "
            "([robotics](robotics.md))."
        ),
        "There is no library: `stormrt plugins build --target TARGET --out BUNDLE/plugins`.",
    ),
    looks_at="whether the graph has plugin nodes, and whether the library is there",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#1913",
        "NVIDIA/TensorRT#3327",
        "NVIDIA-ISAAC-ROS/isaac_ros_common#17",
    ),
)
