# SPDX-License-Identifier: Apache-2.0
"""Isaac ROS: parameters by the nodes' own names, and a launch file that is run with stand-ins.

ROS is not installed here: the launch file runs with modules that only note what they are given,
and that is checked against the schema of the nodes' parameters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.package.assemble import package_bundle
from stormrt.pipeline.package.isaac_ros import parameters, to_yaml
from stormrt.pipeline.package.model import read_model
from stormrt.pipeline.package.schema_isaac_ros import (
    CropNode,
    ImageEncoderArguments,
    ParameterFile,
    ResizeNode,
    TensorRtNode,
)
from stormrt.pipeline.photographs import packaged_photographs, preprocess
from stormrt.pipeline.preprocessing import MEAN, STD
from tests.pipeline.package_bundles import CLASSES, HEIGHT, WIDTH, make_bundle, make_library


def parse_yaml(text: str) -> dict[str, object]:
    """Block YAML whose values are JSON: what the package writes, and no more."""
    root: dict[str, object] = {}
    tables = [(-1, root)]
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        depth = len(line) - len(line.lstrip())
        while tables[-1][0] >= depth:
            tables.pop()
        key, _, value = line.strip().partition(": ")
        if value:
            tables[-1][1][key] = json.loads(value)
        else:
            table: dict[str, object] = {}
            tables[-1][1][key.removesuffix(":")] = table
            tables.append((depth, table))
    return root


@pytest.fixture
def packaged(tmp_path):
    """Makes a package; its folder."""

    def make(library: bool = False, **wanted: object) -> Path:
        bundle = make_bundle(tmp_path / "bundle", **wanted)
        if library:
            make_library(bundle)
        return package_bundle(bundle, "isaac-ros", tmp_path / "package").folder

    return make


class Launched(SimpleNamespace):
    """A stand-in for any of launch's classes: what it was made with."""

    def __init__(self, *arguments, **named):
        super().__init__(arguments=arguments, **named)


@pytest.fixture
def launch(monkeypatch):
    """Runs a package's launch file with stand-ins for ROS; what it starts."""

    class Configuration(Launched):
        def perform(self, context):
            return context[self.arguments[0]]

    modules: dict[str, dict[str, object]] = {
        "launch": {"LaunchDescription": Launched},
        "launch.actions": {
            "DeclareLaunchArgument": Launched,
            "IncludeLaunchDescription": Launched,
            "OpaqueFunction": Launched,
        },
        "launch.launch_description_sources": {"PythonLaunchDescriptionSource": Launched},
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"ComposableNodeContainer": Launched},
        "launch_ros.descriptions": {"ComposableNode": Launched},
        "ament_index_python": {},
        "ament_index_python.packages": {"get_package_share_directory": lambda name: f"/s/{name}"},
        "yaml": {"safe_load": lambda file: parse_yaml(file.read())},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    def run(folder: Path, width: int = 640, height: int = 480) -> SimpleNamespace:
        path = folder / "stormrt.launch.py"
        namespace: dict[str, object] = {"__file__": str(path), "__name__": "launch_file"}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        declared, given = namespace["generate_launch_description"]().arguments[0], {}
        for argument in declared[:-1]:
            given[argument.arguments[0]] = getattr(argument, "default_value", None)
        given.update(input_image_width=str(width), input_image_height=str(height))
        assert None not in given.values()
        container, encoder = declared[-1].function(given)
        resize, crop, tensor_rt = container.composable_node_descriptions
        return SimpleNamespace(
            container=container,
            resize=resize,
            crop=crop,
            tensor_rt=tensor_rt,
            encoder=dict(encoder.launch_arguments),
            encoder_file=encoder.arguments[0].arguments[0],
        )

    return run


def test_the_file_of_parameters_is_read_back_as_the_same(packaged):
    folder = packaged(engine="tensorrt")
    found = ParameterFile.model_validate(parse_yaml((folder / "params.yaml").read_text()))
    assert found == parameters(read_model(folder.parent / "bundle"))
    node = found.tensor_rt_node
    assert node.force_engine_update is False
    assert (node.input_tensor_names, node.input_binding_names) == (("input_tensor",), ("images",))
    assert (node.output_tensor_names, node.output_binding_names) == (
        ("output_tensor",),
        ("logits",),
    )
    encoder = found.dnn_image_encoder
    assert (encoder.network_image_width, encoder.network_image_height) == (WIDTH, HEIGHT)
    assert (encoder.image_mean, encoder.image_stddev) == (MEAN, STD)
    assert encoder.final_tensor_name == node.input_tensor_names[0]


def test_a_real_yaml_parser_reads_the_same(packaged):
    yaml = pytest.importorskip("yaml")
    text = (packaged(engine="tensorrt") / "params.yaml").read_text()
    assert yaml.safe_load(text) == parse_yaml(text)


@pytest.mark.parametrize(
    "line", ["  force_engine_updates: false", "  enable_fp17: true", "extra: 1"]
)
def test_an_unknown_parameter_fails(packaged, line):
    lines = (packaged(engine="tensorrt") / "params.yaml").read_text().splitlines()
    lines.insert(lines.index("tensor_rt_node:") + (1 if line.startswith(" ") else 0), line)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ParameterFile.model_validate(parse_yaml("\n".join(lines)))


def test_a_parameter_of_another_type_fails():
    text = 'tensor_rt_node:\n  force_engine_update: "false"\n'
    with pytest.raises(ValidationError, match="force_engine_update"):
        ParameterFile.model_validate(parse_yaml(text))


def test_rebuilding_the_engine_cannot_be_asked_for():
    with pytest.raises(ValidationError, match="force_engine_update"):
        TensorRtNode(
            model_file_path="m",
            engine_file_path="e",
            input_tensor_names=("a",),
            input_binding_names=("a",),
            output_tensor_names=("a",),
            output_binding_names=("a",),
            force_engine_update=True,
        )


def test_the_launch_file_gives_nodes_only_what_they_know(packaged, launch):
    folder = packaged(engine="tensorrt")
    found = launch(folder)
    (given,) = found.tensor_rt.parameters
    node = TensorRtNode.model_validate(given)
    assert node.engine_file_path == str(folder / "engine.plan")
    assert node.model_file_path == str(folder / "model.onnx")
    assert node.custom_plugin_lib is None
    assert found.container.additional_env == {}
    assert found.tensor_rt.plugin == "nvidia::isaac_ros::dnn_inference::TensorRTNode"
    (given,) = found.resize.parameters
    resize = ResizeNode.model_validate(given)
    (given,) = found.crop.parameters
    crop = CropNode.model_validate(given)
    assert (crop.input_width, crop.input_height) == (resize.output_width, resize.output_height)
    encoder = ImageEncoderArguments.model_validate(found.encoder)
    assert (encoder.input_image_width, encoder.input_image_height) == (
        str(crop.crop_width),
        str(crop.crop_height),
    )
    assert json.loads(encoder.image_mean) == list(MEAN)
    assert encoder.tensor_output_topic == "/tensor_pub"
    assert encoder.component_container_name == found.container.name
    assert found.encoder_file == (
        "/s/isaac_ros_dnn_image_encoder/launch/dnn_image_encoder.launch.py"
    )


def test_topics_of_one_node_are_those_of_the_next(packaged, launch):
    found = launch(packaged(engine="tensorrt"))
    assert dict(found.resize.remappings) == {"image": "/image", "camera_info": "/camera_info"}
    assert dict(found.crop.remappings)["image"] == "resize/image"
    assert found.resize.namespace == found.crop.namespace
    assert found.encoder["image_input_topic"] == f"/{found.crop.namespace}/crop/image"


def test_plugins_are_loaded_by_parameter_and_by_preload(packaged, launch, monkeypatch):
    folder = packaged(library=True, engine="tensorrt", plugins=True)
    monkeypatch.setenv("LD_PRELOAD", "/some/other.so")
    found = launch(folder)
    library = str(folder / "plugins/libstormrt_plugins_autoload.so")
    assert found.tensor_rt.parameters[0]["custom_plugin_lib"] == library
    assert found.container.additional_env == {"LD_PRELOAD": f"/some/other.so:{library}"}


def test_nothing_starts_without_the_engine_or_the_library(packaged, launch):
    folder = packaged(engine="tensorrt", plugins=True)  # no library was built
    with pytest.raises(RuntimeError, match=r"autoload\.so is missing.*README"):
        launch(folder)
    (folder / "engine.plan").unlink()
    with pytest.raises(RuntimeError, match=r"engine\.plan is missing.*README"):
        launch(folder)


@pytest.mark.parametrize("name", ["coffee.png", "astronaut.png", "retina.jpg", "rocket.jpg"])
def test_resizing_and_cutting_are_trainings_to_the_pixel(packaged, launch, name):
    """What the nodes' parameters ask for, done with Pillow, is what stormrt's own code makes."""
    path = next(p for p in packaged_photographs() if p.name == name)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    found = launch(packaged(engine="tensorrt"), *image.size)
    resize, crop = found.resize.parameters[0], found.crop.parameters[0]
    size = resize["output_width"], resize["output_height"]
    resized = image.resize(size, Image.Resampling.BICUBIC)
    # CropMode CENTER of crop_node.cpp.
    left = (crop["input_width"] - crop["crop_width"]) // 2
    top = (crop["input_height"] - crop["crop_height"]) // 2
    cut = resized.crop((left, top, left + crop["crop_width"], top + crop["crop_height"]))
    pixels = np.asarray(cut, np.float32) / 255
    mean, std = (json.loads(found.encoder[f"image_{n}"]) for n in ("mean", "stddev"))
    seen = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    np.testing.assert_allclose(seen, preprocess(path, HEIGHT, WIDTH), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 12), (33, 25), (4000, 100)])
def test_a_camera_of_any_size_gives_parameters_that_the_nodes_take(packaged, launch, size):
    found = launch(packaged(engine="tensorrt"), *size)
    resize = ResizeNode.model_validate(found.resize.parameters[0])
    assert resize.output_height >= HEIGHT
    assert resize.output_width >= WIDTH


def test_a_fixed_batch_other_than_1_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "b", batch=2)
    with pytest.raises(InputError, match="batches of 1"):
        package_bundle(bundle, "isaac-ros", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_dynamic_batch_is_taken(tmp_path):
    model = read_model(make_bundle(tmp_path / "b", batch=4, dynamic=True))
    assert parameters(model).tensor_rt_node.max_batch_size == 4


def test_labels_are_one_a_line(packaged):
    text = (packaged() / "labels.txt").read_text(encoding="utf-8")
    assert tuple(text.splitlines()) == CLASSES


def test_yaml_leaves_out_what_is_not_set(tmp_path):
    text = to_yaml(parameters(read_model(make_bundle(tmp_path / "b"))))
    assert "custom_plugin_lib" not in text
    assert "None" not in text
    assert "null" not in text
