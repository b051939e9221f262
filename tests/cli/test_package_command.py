# SPDX-License-Identifier: Apache-2.0
"""``stormrt package`` on a real build without an engine, and on a made-up one with one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stormrt.pipeline.package.deepstream_graph import compare_graphs, wrap_graph
from stormrt.pipeline.preprocessing import STD
from tests.pipeline.package_bundles import CLASSES, make_bundle
from tests.pipeline.support import environment, published

HOSTS = ["isaac-ros", "triton", "deepstream", "plain"]


@pytest.fixture
def built(tmp_path):
    """A bundle with an engine."""
    return make_bundle(tmp_path / "built", engine="tensorrt")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", ["orin", "built"])
def test_a_build_becomes_a_package(cli, request, tmp_path, host, kind):
    bundle = request.getfixturevalue(kind)
    before = published(bundle)
    done = cli("package", bundle, "--for", host, "--out", tmp_path / "p")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert str(tmp_path / "p" / "README.md") in done.out
    made = json.loads((tmp_path / "p/package.json").read_text())
    for file in made["files"]:
        assert file["name"] in done.out
        assert (tmp_path / "p" / file["name"]).stat().st_size == file["size_bytes"]
    assert published(bundle) == before


def test_json_has_the_index_and_nothing_else_is_on_stdout(cli, tmp_path):
    bundle = make_bundle(tmp_path / "b", engine="tensorrt_rtx")
    done = cli("package", bundle, "--for", "triton", "--out", tmp_path / "p", "--json")
    found = json.loads(done.out)
    assert found["out"] == str(tmp_path / "p")
    assert found["package"]["engine"] == "of TensorRT-RTX"
    assert found["package"] == json.loads((tmp_path / "p/package.json").read_text())


def test_what_is_to_do_is_said(cli, orin, tmp_path):
    done = cli("package", orin, "--for", "isaac-ros", "--out", tmp_path / "p")
    assert "to do: the plugin library is not in the package" in done.err
    assert "to do: the bundle has no engine" in done.err


def test_deepstreams_graph_of_a_real_model_agrees_with_its_own(orin):
    """The Orin's graph has plugins; the build keeps the same model in standard ops beside it."""
    native = next((orin / ".stormrt").glob("*native*.onnx"))
    wrapped = wrap_graph(native, STD)
    found = compare_graphs(native, wrapped, orin / "golden.npz", STD, 1)
    assert found is not None
    assert found.images == found.same_argmax == 4
    assert found.most_difference < 1e-2  # FP16's rounding of an input that differs in its last bit


def test_labels_name_the_classes(cli, built, tmp_path):
    names = [f"name {i}" for i in range(len(CLASSES))]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    out = tmp_path / "p"
    done = cli(
        "package", built, "--for", "plain", "--out", out, "--labels", tmp_path / "labels.txt"
    )
    assert done.code == 0
    assert '"name 4",' in (out / "model.h").read_text()


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "engine.plan"])
def test_a_changed_file_is_refused_and_nothing_is_written(cli, built, tmp_path, name):
    with (built / name).open("ab") as file:
        file.write(b"x")
    done = cli("package", built, "--for", "plain", "--out", tmp_path / "p")
    assert done.code == 2
    assert name in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "p").exists()


def test_a_folder_that_is_no_bundle_is_refused(cli, tmp_path):
    done = cli("package", tmp_path, "--for", "plain", "--out", tmp_path / "p")
    assert done.code == 2
    assert "manifest.json could not be read" in done.err


@pytest.mark.parametrize(
    "arguments", [["--for", "ros", "--out", "p"], ["--for", "plain"], ["--out", "p"]]
)
def test_bad_usage_is_refused(cli, tmp_path, arguments):
    assert cli("package", tmp_path, *arguments).code == 2


def test_a_packages_refusal_as_json(cli, tmp_path):
    done = cli("package", tmp_path, "--for", "plain", "--out", tmp_path / "p", "--json")
    assert done.code == 2
    assert "manifest.json" in json.loads(done.out)["error"]["where"]


@pytest.mark.parametrize("host", ["isaac-ros", "triton", "plain"])
def test_no_workstation_package_is_needed(orin, tmp_path, host):
    """On a board there is no PyTorch and no ONNX: loading one of them would end this program."""
    program = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'onnx', 'onnxruntime', 'jinja2'):\n"
        "            raise AssertionError(name + ' was imported')\n"
        "sys.meta_path.insert(0, No())\n"
        "from stormrt.pipeline.cli.main import main\n"
        "main()\n"
    )
    arguments = ["package", str(orin), "--for", host, "--out", str(tmp_path / "p")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
