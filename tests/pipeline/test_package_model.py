# SPDX-License-Identifier: Apache-2.0
"""What a package is made from: a whole bundle is read, a damaged one is refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stormrt.errors import InputError
from stormrt.pipeline.package.model import read_model
from stormrt.pipeline.preprocessing import MEAN, RESIZE_RATIO, STD
from tests.pipeline.package_bundles import (
    CLASSES,
    HEIGHT,
    WIDTH,
    make_bundle,
    make_library,
    vars_of,
)


def refused(folder: Path, labels: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_model(folder, labels)
    return str(caught.value)


def edit(folder: Path, **changes: object) -> Path:
    """Change the manifest's keys; a dotted name is a key below."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = content
        for inner in tables:
            table = table[inner]
        table[key] = value
    path.write_text(json.dumps(content))
    return folder


def test_a_bundle_tells_everything_that_hosts_ask_for(tmp_path):
    model = read_model(make_bundle(tmp_path / "b", engine="tensorrt", batch=3))
    assert model.name == "tiny"
    assert model.input_dims == (3, HEIGHT, WIDTH)
    assert model.batch == 3
    assert model.classes == CLASSES
    assert model.classes_are_named
    assert model.has_engine
    assert not model.needs_plugins
    cut = model.preprocessing
    assert (cut.mean, cut.std, cut.resize_ratio) == (MEAN, STD, RESIZE_RATIO)


@pytest.mark.parametrize(
    ("engine", "state"),
    [("tensorrt", "included"), (None, "not built"), ("tensorrt_rtx", "of TensorRT-RTX")],
)
def test_only_an_engine_that_the_host_runs_counts(tmp_path, engine, state):
    model = read_model(make_bundle(tmp_path / "b", engine=engine))
    assert model.engine_state(("tensorrt",)) == state


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "engine.plan"])
def test_a_file_that_has_changed_or_is_missing_is_named(tmp_path, name):
    folder = make_bundle(tmp_path / "b", engine="tensorrt")
    with (folder / name).open("ab") as file:
        file.write(b"x")
    assert name in refused(folder)
    (folder / name).unlink()
    assert name in refused(folder)


def test_an_engine_that_is_not_the_manifests_is_refused_with_both_digests(tmp_path):
    folder = make_bundle(tmp_path / "b", engine="tensorrt")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] = [f for f in content["files"] if f["name"] != "engine.plan"]
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / "engine.plan").write_bytes(b"another engine")
    message = refused(folder)
    assert "the engine is not the one of the manifest" in message
    assert content["engine"]["file"]["sha256"] in message
    assert f"stormrt build {folder}" in message


def test_an_engine_that_the_manifest_does_not_know_is_refused(tmp_path):
    folder = make_bundle(tmp_path / "b")
    (folder / "engine.plan").write_bytes(b"from another build")
    assert "does not know" in refused(folder)


def test_an_engine_for_another_gpu_is_refused(tmp_path):
    folder = edit(make_bundle(tmp_path / "b", engine="tensorrt"), engine__sm=87)
    assert "another GPU" in refused(folder)


@pytest.mark.parametrize("name", ["../tiny", "a/b", "", "a b", "$(id)", ".tiny"])
def test_a_models_name_that_is_no_file_name_is_refused(tmp_path, name):
    assert "cannot be a file's name" in refused(edit(make_bundle(tmp_path / "b"), model__name=name))


def test_a_bundle_without_golden_data_in_its_manifest_is_refused(tmp_path):
    folder = make_bundle(tmp_path / "b")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert "no golden.npz" in refused(edit(folder, files=files[:1]))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    folder = make_bundle(tmp_path / "b")
    (folder / "manifest.json").write_text(content)
    assert "damaged or of another version" in refused(folder)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    assert "manifest.json" in refused(tmp_path)


def test_classes_are_numbered_where_nothing_names_them(tmp_path):
    model = read_model(make_bundle(tmp_path / "b", card=False))
    assert model.classes == tuple(f"class {i}" for i in range(len(CLASSES)))
    assert not model.classes_are_named


def test_a_file_of_labels_goes_before_the_card(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n\n c \nd\ne\n")
    assert read_model(make_bundle(tmp_path / "b"), labels).classes == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a\nb\n", "2 names"),
        (b"", "0 names"),
        (b"\xff\xfe", "could not be read"),
        (b"a\nb\nc\nd\n\x07e\n", "not printable"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, text, says):
    labels = tmp_path / "labels.txt"
    labels.write_bytes(text)
    assert says in refused(make_bundle(tmp_path / "b"), labels)
    assert "could not be read" in refused(tmp_path / "b", tmp_path / "nowhere.txt")


def test_a_card_of_other_weights_is_refused(tmp_path):
    folder = edit(make_bundle(tmp_path / "b"), model__checkpoint_sha256="0" * 64)
    assert "other weights" in refused(folder)


def test_a_plugin_library_of_the_bundle_is_found(tmp_path):
    folder = make_bundle(tmp_path / "b", plugins=True)
    assert read_model(folder).plugin_files == ()
    make_library(folder)
    names = [p.name for p in read_model(folder).plugin_files]
    assert names == ["libstormrt_plugins.so", "libstormrt_plugins_autoload.so"]


def test_a_library_beside_a_graph_of_standard_ops_is_left_alone(tmp_path):
    folder = make_bundle(tmp_path / "b")
    make_library(folder)
    assert read_model(folder).plugin_files == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"archs": ("sm_87",)}, "another machine"),
        ({"machine": "aarch64"}, "another machine"),
    ],
)
def test_a_library_for_another_machine_is_refused(tmp_path, change, says):
    folder = make_bundle(tmp_path / "b", plugins=True)
    make_library(folder, **change)
    assert says in refused(folder)


def test_a_library_that_has_changed_is_refused_with_the_command_that_mends_it(tmp_path):
    folder = make_bundle(tmp_path / "b", plugins=True)
    plugins = make_library(folder)
    (plugins / "libstormrt_plugins.so").write_bytes(b"other")
    assert "stormrt plugins build --target t4" in refused(folder)
    (plugins / "libstormrt_plugins.json").write_text("{}")
    assert "no manifest" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model__height": 0},
        {"model__width": -3},
        {"model__height": HEIGHT + 1},
        {"model__num_classes": 10**12},
        {"model__batch": 0},
    ],
)
def test_sizes_that_are_not_the_golden_datas_are_refused(tmp_path, change):
    assert "other sizes" in refused(edit(make_bundle(tmp_path / "b"), **change))


def test_golden_data_that_are_none_are_refused(tmp_path):
    folder = make_bundle(tmp_path / "b")
    (folder / "golden.npz").write_bytes(b"PK no zip")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files=[files[0], vars_of(folder / "golden.npz")])
    assert "golden data could not be read" in refused(folder)
