# SPDX-License-Identifier: Apache-2.0
"""`stormrt build --precision int8`: what it makes beside FP16, and what its gate refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from stormrt.errors import InputError
from stormrt.pipeline.build import BESIDE, STAGES, BuildRequest, build
from stormrt.pipeline.device_build import build_bundle
from stormrt.pipeline.onnx_file import load_onnx
from stormrt.pipeline.probe import installed_version
from stormrt.pipeline.schema import Manifest, ValidationReport
from tests.cli.conftest import HEIGHT, STORM, WIDTH
from tests.pipeline import support
from tests.pipeline.support import CLASSES, SMALL, digest, ops

ORIN = "orin-nano-8g"
GRAPHS = {"model.onnx", "model.fp16.onnx", "calibration.json", "golden.npz"}
SOURCES = {"plugin_sources.zip"}
RECORDS = {"manifest.json", "report.json", "report.md", "build_engine.py"}

needs_rtx = pytest.mark.skipif(
    installed_version("tensorrt-rtx") is None,
    reason="tensorrt_rtx is not installed: no engine can be built here",
)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="session")
def labelled(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many classes as the model has, of one image each."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir()
        source = sorted(photographs.iterdir())[number % 4]
        shutil.copy(source, folder / f"class{number}" / source.name)
    return folder


@pytest.fixture(scope="session")
def _int8_made(photographs: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "made"
    request = BuildRequest(
        model=SMALL,
        target=ORIN,
        out=out,
        num_classes=CLASSES,
        precision="int8",
        storm=STORM,
        height=HEIGHT,
        width=WIDTH,
        photographs=photographs,
        calibration=photographs,
        labelled=labelled,
    )
    with support.small_variants():
        build(request)
    return out


@pytest.fixture
def int8(_int8_made: Path, tmp_path: Path) -> Path:
    """A copy of an INT8 bundle for an Orin, calibrated on four photographs."""
    return shutil.copytree(_int8_made, tmp_path / "int8")


@pytest.fixture
def spoilt(int8: Path, tmp_path: Path) -> tuple[Path, str]:
    """Its calibration table with one range that is far too small, and the tensor's name."""
    content = json.loads((int8 / "calibration.json").read_text())
    name = next(n for n in content["tensors"] if n.endswith("mlp.act/Mul_2"))
    content["tensors"][name]["amax"] *= 1e-3
    table = tmp_path / "spoilt.json"
    table.write_text(json.dumps(content))
    return table, name


def test_int8_is_built_beside_fp16_with_its_calibration(int8):
    assert files(int8) == GRAPHS | RECORDS | SOURCES
    manifest = Manifest.read(int8 / "manifest.json")
    assert manifest.precision == "int8"
    assert manifest.refused is None
    assert manifest.fp16 is not None
    assert manifest.fp16.model.sha256 == digest(int8 / "model.fp16.onnx")
    assert {f.name for f in manifest.files} == GRAPHS | SOURCES | {"build_engine.py"}
    assert ops(load_onnx(int8 / "model.onnx"), "QuantizeLinear")
    assert not ops(load_onnx(int8 / "model.fp16.onnx"), "QuantizeLinear")
    assert {p.name for p in manifest.plugins} == {"SelectiveScan2D", "SpatialUnitGather"}


def test_the_report_sets_size_error_and_top1_side_by_side(int8, labelled):
    gate = ValidationReport.read(int8 / "report.json").gate
    assert gate is not None
    assert gate.passed
    eight, sixteen = gate.rows
    assert (eight.precision, sixteen.precision) == ("int8", "fp16")
    assert eight.onnx_bytes == (int8 / "model.onnx").stat().st_size < sixteen.onnx_bytes
    assert eight.engine_bytes is None
    assert sixteen.metrics.rel_l2 < eight.metrics.rel_l2 < 0.15
    assert (gate.labelled, gate.images) == (str(labelled), CLASSES)
    assert eight.top1 is not None
    assert 0 <= eight.top1 <= 1
    assert eight.latency_ms is None
    text = (int8 / "report.md").read_text()
    assert "INT8 beside FP16: passed" in text
    assert "not run" in text


def test_what_rounding_does_to_each_tensor_is_small_and_named_by_layer(int8):
    gate = ValidationReport.read(int8 / "report.json").gate
    assert gate is not None
    errors = [e.rel_l2 for e in gate.worst]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[0] < 0.2
    assert all(e.layer.endswith("/Conv") for e in gate.worst)


def test_a_second_build_from_its_own_table_skips_the_graphs(cli, int8, options, labelled):
    table = int8 / "calibration.json"
    done = cli(
        *options(ORIN, int8, precision="int8", calibration=table, labelled=labelled), "--json"
    )
    assert done.code == 0, done.err
    said = json.loads(done.out)["stages"]
    assert said["precision"] == said[f"precision{BESIDE}"] == said["lower"] == "skipped"
    assert set(said) == {*STAGES, f"precision{BESIDE}", f"lower{BESIDE}"}


def test_a_bad_range_is_refused_and_its_layer_named(cli, int8, spoilt, options):
    table, name = spoilt
    done = cli(*options(ORIN, int8, precision="int8", calibration=table))
    assert done.code == 1
    report = ValidationReport.read(int8 / "report.json")
    assert report.gate is not None
    assert not report.gate.passed
    assert report.gate.reasons
    assert report.gate.worst[0].tensor == name
    assert report.gate.worst[0].rel_l2 > 0.5
    layer = name.replace("act/Mul_2", "fc2/Conv")
    assert report.gate.worst[0].layer == layer
    assert "refuses INT8" in report.summary
    assert layer in report.summary
    assert "refused" in done.out
    with pytest.raises(InputError, match="the gate refused this bundle"):
        build_bundle(int8)


@needs_rtx
@pytest.mark.slow
def test_only_an_engine_that_passed_is_called_engine_plan(cli, spoilt, options, tmp_path):
    table, _ = spoilt
    out = tmp_path / "t4"
    engines = {"engine.fp16.plan", "engine.refused.plan"}
    done = cli(*options("t4", out, precision="int8", calibration=table))
    assert done.code == 1, done.err
    assert files(out) == GRAPHS | RECORDS | engines
    gate = ValidationReport.read(out / "report.json").gate
    assert gate is not None
    assert any("FP16: the largest of" in note for note in gate.notes)
    assert any("the builder's list has" in note and "in half" in note for note in gate.notes)
    manifest = Manifest.read(out / "manifest.json")
    assert manifest.engine is None
    assert manifest.refused
    assert manifest.fp16 is not None
    assert manifest.fp16.engine is not None
    assert manifest.fp16.engine.file.sha256 == digest(out / "engine.fp16.plan")
    # The good build of FP16 alone clears what the refused one left.
    done = cli(*options("t4", out, precision="fp16"))
    assert done.code == 0, done.err
    assert files(out) == {"model.onnx", "golden.npz", "engine.plan"} | RECORDS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "INT8 needs a calibration"),
        ({"precision": "fp16", "calibration": "nowhere"}, "the calibration does not exist"),
        ({"precision": "int8", "calibration": "nowhere"}, "the calibration does not exist"),
        ({"precision": "fp16", "labelled": "here"}, "labelled images are for the gate"),
        (
            {"precision": "int8", "calibration": "here", "labelled": "nowhere"},
            "the labelled images do not exist",
        ),
    ],
)
def test_what_int8_is_made_from_is_checked_first(
    cli, options, photographs, tmp_path, changes, message
):
    paths = {"here": photographs, "nowhere": tmp_path / "nowhere"}
    changes = {key: paths.get(value, value) for key, value in changes.items()}
    done = cli(*options("t4", tmp_path / "out", **changes))
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_an_fp16_build_keeps_in_fp32_what_its_calibration_says_that_fp16_cannot_hold(
    cli, int8, options, tmp_path
):
    content = json.loads((int8 / "calibration.json").read_text())
    name = next(n for n in content["largest"] if "SelectiveScan" in n)
    content["largest"][name] = 1e5
    table = tmp_path / "loud.json"
    table.write_text(json.dumps(content))
    done = cli(*options(ORIN, tmp_path / "o", precision="fp16", calibration=table))
    assert done.code == 0, done.err
    model = onnx.load(tmp_path / "o" / "model.onnx")
    scans = {n.name: n for n in model.graph.node if n.op_type.startswith("SelectiveScan")}
    made = next(n for n in scans.values() if name in n.output or n.name == name)
    halves = {n.output[0] for n in scans.values()} - {made.output[0]}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert types[made.output[0]] == onnx.TensorProto.FLOAT
    assert {types[h] for h in halves} == {onnx.TensorProto.FLOAT16}


def test_a_table_of_another_plan_is_refused(cli, int8, options, tmp_path):
    table = int8 / "calibration.json"
    done = cli(
        *options(
            ORIN, tmp_path / "o", precision="int8", calibration=table, storm="keep=0.75,stage=2"
        )
    )
    assert done.code == 2
    assert "another STORM plan" in done.err


def test_int8_is_evaluated_by_the_graph_that_a_build_lowers(cli, int8, labelled):
    common = ["--model", SMALL, "--classes", CLASSES, "--size", f"{HEIGHT}x{WIDTH}"]
    common += ["--storm", STORM, "--data", labelled, "--precision", "int8", "--json"]
    done = cli("evaluate", *common, "--calibration", int8 / "calibration.json", "--batch", 1)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    gate = ValidationReport.read(int8 / "report.json").gate
    assert gate is not None
    assert found["top1"] == gate.rows[0].top1
    assert (found["precision"], found["images"]) == ("int8", CLASSES)
    refused = cli("evaluate", *common, "--runtime", "torch", "--calibration", labelled)
    assert refused.code == 2
    assert "PyTorch does not run" in refused.out
