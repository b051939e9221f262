# SPDX-License-Identifier: Apache-2.0
"""The README of a package: what to type, what was checked here, what nobody ran."""

from __future__ import annotations

from collections.abc import Sequence

from stormrt.pipeline.package import deepstream, plain
from stormrt.pipeline.package.deepstream_graph import one_scale_error
from stormrt.pipeline.package.engine_files import SCRIPT_NAME, EngineFiles
from stormrt.pipeline.package.model import PackagedModel
from stormrt.pipeline.package.parts import Host, PackageFile, template
from stormrt.pipeline.probe import format_sm

_FOLDERS: dict[Host, str] = {
    "isaac-ros": "isaac_ros",
    "triton": "triton",
    "deepstream": "deepstream",
    "plain": "plain",
}
_HOST_NAMES: dict[Host, str] = {
    "isaac-ros": "Isaac ROS",
    "triton": "Triton",
    "deepstream": "DeepStream",
    "plain": "the program on the target",
}
EXAMPLE_FRAME = (1080, 1920)
"""Height and width of the frames in examples, in pixels."""


def readme(
    host: Host, model: PackagedModel, shared: EngineFiles, values: dict[str, str]
) -> PackageFile:
    """The README.

    Args:
        host: What the package is for.
        model: The bundle.
        shared: The engine's part of the package.
        values: What the host's template has beside the common names.
    """
    filled = {
        "model": model.name,
        "facts": _facts(model, shared),
        "before": _before(shared),
        "checked": _listed(_checked(host, model, shared)),
        **values,
    }
    return PackageFile("README.md", template(f"{_FOLDERS[host]}/README.md.template", filled))


def isaac_ros_values(model: PackagedModel) -> dict[str, str]:
    """What Isaac ROS's template has."""
    preload = ""
    if model.needs_plugins:
        preload = (
            "The plugins come by `custom_plugin_lib` (release 4.2 and later) and by `LD_PRELOAD`,\n"
            "which the launch file sets for the container: earlier releases lack the parameter.\n"
        )
    return {"classes": str(len(model.classes)), "plugins": preload, "platform": _platform(model)}


def triton_values(model: PackagedModel) -> dict[str, str]:
    """What Triton's template has."""
    options, preload = "", ""
    if model.needs_plugins:
        library = "/package/plugins/libstormrt_plugins_autoload.so"
        options = f" \\\n        --backend-config=tensorrt,plugins={library}"
        preload = (
            "\nThe backend opens the library with dlopen before it loads a plan. Where an older\n"
            f"one lacks the option, `docker run -e LD_PRELOAD={library} ...` does the same.\n"
        )
    return {"options": options, "preload": preload}


def deepstream_values(model: PackagedModel, made: deepstream.DeepStreamFiles) -> dict[str, str]:
    """What DeepStream's template has."""
    cut = model.preprocessing
    error = one_scale_error(cut.mean, cut.std)
    found = made.agreement
    agreement = made.not_run
    if found is not None:
        agreement = (
            f"onnxruntime, {found.images} golden photographs, against the bundle's graph: largest "
            f"difference of a probability {found.most_difference:.1e}, same class "
            f"{found.same_argmax} of {found.images}"
        )
    height, width = EXAMPLE_FRAME
    top, left, cut_height, cut_width = seen_part(model, height, width)
    # Video frames have half as many colour samples: cuts begin and end at even pixels.
    size = [n + n % 2 for n in (cut_width, cut_height)]
    return {
        "relative": f"{error.relative:.1%}",
        "most": f"{error.most:.3f}",
        "std": ", ".join(map(str, cut.std)),
        "agreement": agreement,
        "frame": f"{width} x {height}",
        "crop": ":".join(map(str, (left - left % 2, top - top % 2, *size))),
        "crop_size": f"width={size[0]},height={size[1]}",
        "mux_size": f"width={size[0]} height={size[1]}",
        "resize_ratio": f"{cut.resize_ratio:.4g}",
        "height": str(model.input_dims[1]),
        "width": str(model.input_dims[2]),
    }


def plain_values(model: PackagedModel) -> dict[str, str]:
    """What the C++ program's template has."""
    product = "TensorRT-RTX" if plain.runtime(model) == "tensorrt_rtx" else "TensorRT"
    return {"product": product, "golden": str(plain.GOLDEN_IMAGES)}


def seen_part(model: PackagedModel, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a frame that training sees: it resizes, and then cuts the centre out.

    Args:
        model: The bundle.
        height: Of the frame, in pixels.
        width: Of the frame, in pixels.

    Returns:
        Top, left, height and width, in the frame's own pixels.
    """
    _, network_height, network_width = model.input_dims
    ratio = model.preprocessing.resize_ratio
    scale = max(network_height * ratio / height, network_width * ratio / width)
    top, rows = _seen(height, max(network_height, round(height * scale)), network_height)
    left, columns = _seen(width, max(network_width, round(width * scale)), network_width)
    return top, left, rows, columns


def _seen(extent: int, resized: int, network: int) -> tuple[int, int]:
    """Start and extent of the cut, carried back from the resized frame."""
    scale = resized / extent
    return round((resized - network) // 2 / scale), min(extent, max(1, round(network / scale)))


def _facts(model: PackagedModel, shared: EngineFiles) -> str:
    manifest = model.manifest
    spec = manifest.model
    engine = manifest.engine
    described = "to be built on the target"
    if shared.state == "included" and engine is not None:
        described = (
            f"`{engine.runtime}` {engine.runtime_version}, {format_sm(engine.sm)}; it runs with "
            "that version and no other"
        )
    batch = f"1 to {spec.batch}" if spec.dynamic_batch else str(spec.batch)
    rows = {
        "model": f"{model.name}, {spec.plan.describe()}",
        "weights": spec.checkpoint or f"random (seed {spec.seed}): the classes mean nothing",
        "input": f"`images`, {batch} x 3 x {spec.height} x {spec.width}, FP32, RGB, normalised",
        "output": f"`logits`, {batch} x {spec.num_classes}, FP32",
        "target": f"{model.target.description} (`{manifest.target}`)",
        "graph": f"{manifest.precision}, {manifest.lowering} lowering",
        "plugins": ", ".join(f"{p.name} (version {p.version})" for p in manifest.plugins) or "none",
        "engine": described,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _before(shared: EngineFiles) -> str:
    if not shared.notes:
        return "Nothing: engine and libraries are here. They are for the target alone.\n"
    return "\n".join(f"- {note}" for note in shared.notes) + "\n"


def _checked(host: Host, model: PackagedModel, shared: EngineFiles) -> list[str]:
    done = ["digests of every file of the bundle: **checked**"]
    if host != "plain":
        done.append(
            "every key and its type: **checked** against a schema of what the host's own sources "
            "read (`stormrt/pipeline/package/schema_"
            f"{_FOLDERS[host]}.py` names them)"
        )
    if shared.state != "included":
        done.append(f"`{SCRIPT_NAME}`: **not run** on the target ({model.target.description})")
    if host == "plain":
        done.append("the program is compiled, linked and started in stormrt's tests, without a GPU")
    done.append(f"{_HOST_NAMES[host]}: **not run**")
    return done


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _platform(model: PackagedModel) -> str:
    if model.target.device.sm >= 80:
        return ""
    return (
        f"**Isaac ROS lists no {model.target.description}**: its documentation asks for Ampere or\n"
        "later. Whether the nodes run there is unknown.\n"
    )
