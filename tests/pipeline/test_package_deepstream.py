# SPDX-License-Identifier: Apache-2.0
"""DeepStream: nvinfer's file read back, and a graph that makes nvinfer's arithmetic the model's."""

from __future__ import annotations

import configparser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.package import deepstream
from stormrt.pipeline.package.assemble import package_bundle
from stormrt.pipeline.package.deepstream_graph import one_scale_error, wrap_graph
from stormrt.pipeline.package.model import read_model
from stormrt.pipeline.package.readme import seen_part
from stormrt.pipeline.package.schema_deepstream import NvInferProperty
from stormrt.pipeline.photographs import packaged_photographs, preprocess
from stormrt.pipeline.preprocessing import MEAN, STD
from tests.helpers.seeds import generator
from tests.pipeline.package_bundles import (
    CLASSES,
    HEIGHT,
    IMAGES,
    WIDTH,
    golden,
    make_bundle,
    make_library,
    pixels,
)


@pytest.fixture
def packaged(tmp_path):
    """Makes a package; its folder."""

    def make(library: bool = False, **wanted: object) -> Path:
        bundle = make_bundle(tmp_path / "bundle", **wanted)
        if library:
            make_library(bundle)
        return package_bundle(bundle, "deepstream", tmp_path / "package").folder

    return make


def parse_config(text: str) -> dict[str, object]:
    """The group [property] of a key file; texts that are numbers become numbers."""
    parser = configparser.RawConfigParser(delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keys as they are
    parser.read_string(text)
    assert parser.sections() == ["property"]
    return {key: number(value) for key, value in parser["property"].items()}


def number(value: str) -> object:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def read_config(folder: Path) -> NvInferProperty:
    return NvInferProperty.model_validate(parse_config((folder / "config_infer.txt").read_text()))


def by_nvinfer(frame: np.ndarray, group: NvInferProperty) -> np.ndarray:
    """[n, H, W, 3], uint8 -> what nvinfer gives the engine: y = scale * (x - offset)."""
    offsets = np.array([float(x) for x in group.offsets.split(";")], np.float32)
    values = np.float32(group.net_scale_factor) * (frame.astype(np.float32) - offsets)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def run(graph: Path, images: np.ndarray, output: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.read_bytes())
    return np.concatenate([session.run([output], {"images": i[None]})[0] for i in images])


@pytest.mark.parametrize(
    "wanted",
    [{}, {"batch": 4, "dynamic": True}, {"plugins": True}, {"precision": "fp32"}],
)
def test_the_configuration_is_read_back_as_the_same(packaged, wanted):
    folder = packaged(**wanted)
    assert read_config(folder) == deepstream.properties(read_model(folder.parent / "bundle"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("net-scale-factors=1", "Extra inputs"),
        ("onnx-fil=model.onnx", "Extra inputs"),
        ("network-type=2", "network-type"),
        ("classifier-threshold=2", "classifier-threshold"),
        ("scaling-filter=7", "scaling-filter"),
        ("offsets=1;2", "offsets"),
    ],
)
def test_an_unknown_key_or_a_wrong_value_fails(packaged, line, says):
    found = parse_config((packaged() / "config_infer.txt").read_text())
    key, _, value = line.partition("=")
    with pytest.raises(ValidationError, match=says):
        NvInferProperty.model_validate(found | {key: number(value)})


@pytest.mark.parametrize(("precision", "mode"), [("fp32", 0), ("fp16", 2), ("int8", 1)])
def test_the_network_mode_is_the_graphs_precision(packaged, precision, mode):
    assert read_config(packaged(precision=precision)).network_mode == mode


def test_nvinfers_arithmetic_and_the_graphs_first_node_are_the_models_normalisation(packaged):
    """On every pixel value of every channel, to FP32's rounding."""
    group = read_config(packaged())
    every = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(3, axis=3)
    scaled = by_nvinfer(every, group) * (1 / np.array(STD, np.float32)).reshape(1, 3, 1, 1)
    expected = (every / np.float64(255) - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(scaled[0].transpose(1, 2, 0), expected[0], atol=1e-6)


def test_probabilities_are_those_of_the_bundles_logits(packaged):
    folder = packaged()
    _, logits = golden(folder.parent / "bundle")
    frames = by_nvinfer(pixels(), read_config(folder))
    found = run(folder / "model_deepstream.onnx", frames, read_config(folder).output_blob_names)
    exponents = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(found, exponents / exponents.sum(1, keepdims=True), atol=1e-5)
    assert np.all(found > 0)  # what nvinfer's parser asks for


def test_the_agreement_is_measured_and_told(packaged):
    folder = packaged()
    readme = (folder / "README.md").read_text()
    assert f"same class {IMAGES} of {IMAGES}" in readme
    assert "not run: the graph has" not in readme


def test_a_graph_with_plugins_is_not_run_and_that_is_told(packaged):
    folder = packaged(plugins=True)
    assert "not run: the graph has plugin nodes" in (folder / "README.md").read_text()


def test_a_wrong_graph_would_be_seen(packaged, tmp_path):
    """The comparison is not blind: a graph with other factors is far off."""
    bundle = make_bundle(tmp_path / "other")
    wrong = wrap_graph(bundle / "model.onnx", (0.1, 0.5, 0.9))
    from stormrt.pipeline.package.deepstream_graph import compare_graphs

    found = compare_graphs(bundle / "model.onnx", wrong, bundle / "golden.npz", STD, 1)
    assert found is not None
    assert found.most_difference > 1e-2


def test_the_bundle_stays_as_it_was(packaged, tmp_path):
    bundle = make_bundle(tmp_path / "other", engine="tensorrt")
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    package_bundle(bundle, "deepstream", tmp_path / "p")
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before


def test_two_nodes_are_added_and_the_rest_stays(packaged):
    folder = packaged(plugins=True)
    before = onnx.load(folder.parent / "bundle/model.onnx")
    after = onnx.load(folder / "model_deepstream.onnx")
    kinds = [n.op_type for n in after.graph.node]
    assert kinds == ["Mul", *(n.op_type for n in before.graph.node), "Softmax"]
    assert [o.name for o in after.graph.output] == ["probabilities"]
    assert after.graph.output[0].type == before.graph.output[0].type
    assert after.graph.input == before.graph.input
    assert after.graph.node[1].domain == "stormrt"


def test_a_graph_with_another_output_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    model = onnx.load(bundle / "model.onnx")
    model.graph.output[0].name = "scores"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"images -> scores[\s\S]*images -> logits"):
        wrap_graph(tmp_path / "other.onnx", STD)
    (tmp_path / "none.onnx").write_bytes(b"\x00\x01")
    with pytest.raises(InputError, match="ONNX"):
        wrap_graph(tmp_path / "none.onnx", STD)


def test_an_engine_of_the_bundles_graph_does_not_go_with_this_package(packaged):
    folder = packaged(engine="tensorrt")
    assert not (folder / "engine.plan").exists()
    assert "--onnx=model_deepstream.onnx" in (folder / "build_engine.sh").read_text()
    assert "a graph of its own" in (folder / "README.md").read_text()


def test_no_graph_is_named_that_nvinfer_could_build_without_strong_typing(packaged):
    assert "onnx-file" not in parse_config((packaged() / "config_infer.txt").read_text())


def test_the_plugin_library_registers_when_nvinfer_opens_it(packaged):
    folder = packaged(library=True, plugins=True)
    path = read_config(folder).custom_lib_path
    assert path == "plugins/libstormrt_plugins_autoload.so"
    assert (folder / path).is_file()


def test_labels_are_one_line_parted_by_semicolons(packaged):
    text = (packaged() / "labels.txt").read_text(encoding="utf-8")
    assert tuple(text.rstrip("\n").split(";")) == CLASSES


def test_a_semicolon_in_a_name_is_refused(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb;c\nd\ne\nf\n")
    with pytest.raises(InputError, match=r"semicolon[\s\S]*b;c"):
        package_bundle(make_bundle(tmp_path / "b"), "deepstream", tmp_path / "p", labels=labels)


def test_a_fixed_batch_is_told_as_what_nvstreammux_must_make(packaged):
    assert "batch-size=2" in (packaged(batch=2) / "README.md").read_text()


def test_one_scale_for_all_channels_is_as_far_off_as_said() -> None:
    """Against a search over scales, on every pixel value."""
    values = np.arange(256)[:, None] / 255 - np.array(MEAN)
    exact = values / np.array(STD)
    told = one_scale_error(MEAN, STD)
    worst = [np.abs(k * np.array(STD) - 1).max() for k in np.linspace(3.5, 5.5, 20001)]
    assert told.relative == pytest.approx(min(worst), abs=1e-4)
    k = 2 / (min(STD) + max(STD))
    assert told.most == pytest.approx(np.abs(k * values - exact).max(), rel=1e-9)


def test_equal_deviations_need_no_graph_of_their_own() -> None:
    assert one_scale_error(MEAN, (0.25, 0.25, 0.25)).most == 0


@pytest.mark.parametrize("name", ["coffee.png", "astronaut.png", "rocket.jpg"])
def test_the_part_that_is_cut_out_is_what_training_sees(packaged, tmp_path, name):
    from PIL import Image

    model = read_model(make_bundle(tmp_path / "b"))
    path = next(p for p in packaged_photographs() if p.name == name)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    top, left, height, width = seen_part(model, image.height, image.width)
    assert top + height <= image.height
    assert left + width <= image.width
    small = image.crop((left, top, left + width, top + height)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    found = (np.asarray(small, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    expected = preprocess(path, HEIGHT, WIDTH)
    distance = np.linalg.norm(found.transpose(2, 0, 1) - expected) / np.linalg.norm(expected)
    assert distance < 0.1


def test_the_example_in_the_readme_cuts_even_pixels_inside_the_frame(packaged):
    readme = (packaged() / "README.md").read_text()
    crop = readme.split("src-crop=")[1].split(" ")[0]
    left, top, width, height = map(int, crop.split(":"))
    assert left + width <= 1920
    assert top + height <= 1080
    assert {n % 2 for n in (left, top, width, height)} == {0}


def test_random_frames_keep_their_order_of_classes(packaged):
    """What nvinfer computes on frames that are no photographs, too."""
    folder = packaged()
    frames = generator("frames").integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    normal = (frames / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    normal = np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32)
    logits = run(folder.parent / "bundle/model.onnx", normal, "logits")
    found = run(
        folder / "model_deepstream.onnx", by_nvinfer(frames, read_config(folder)), "probabilities"
    )
    np.testing.assert_array_equal(found.argsort(axis=1), logits.argsort(axis=1))
