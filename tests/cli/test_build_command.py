# SPDX-License-Identifier: Apache-2.0
"""`stormrt build`: what it makes, what it skips, and what its exit codes say."""

from __future__ import annotations

import json
import shutil

import pytest

from stormrt.locking import folder_lock
from stormrt.pipeline.build import STAGES as ALL_STAGES
from stormrt.pipeline.device_build import read_bundle
from stormrt.pipeline.schema import Manifest, ValidationReport
from stormrt.targets import dump_target, load_target
from tests.pipeline.support import ROOT, digest, ops, published, run_stormrt

STAGES = tuple(name for name in ALL_STAGES if name != "calibrate")
"""Without INT8's."""
RECORDS = {"manifest.json", "report.json", "report.md"}
BUNDLE_FILES = RECORDS | {"golden.npz", "model.onnx", "build_engine.py"}
PLUGIN_BUNDLE_FILES = BUNDLE_FILES | {"plugin_sources.zip"}


def stages(err: str) -> dict[str, str]:
    """Stage -> the last that was said of it."""
    said = {}
    for line in err.splitlines():
        name, _, rest = line.partition(" ")
        if name in STAGES:
            said[name] = rest.strip()
    return said


class TestT4:
    def test_the_folder_holds_the_engine_its_manifest_and_its_report(self, t4):
        assert set(published(t4)) == BUNDLE_FILES | {"engine.plan"}
        manifest, target = read_bundle(t4)
        assert target.id == "t4"
        assert (manifest.runtime, manifest.lowering) == ("tensorrt_rtx", "native")
        assert manifest.plugins == ()
        assert manifest.engine is not None
        assert manifest.engine.sm == 75
        assert manifest.engine.file.sha256 == digest(t4 / "engine.plan")
        assert {f.name for f in manifest.files} == set(published(t4)) - RECORDS

    def test_an_engine_that_nobody_ran_is_reported_as_not_run_with_the_reason(self, t4):
        report = ValidationReport.read(t4 / "report.json")
        graph, engine = report.rows
        assert report.passed
        assert (graph.runtime, graph.status) == ("onnxruntime", "passed")
        assert engine.runtime == "tensorrt_rtx"
        if engine.status == "not run":
            assert engine.reason
            assert engine.metrics is None
            assert f"not run: {engine.reason}" in (t4 / "report.md").read_text()
        else:  # this machine has a T4
            assert engine.status == "passed"

    def test_a_second_build_skips_every_stage_and_touches_nothing(self, cli, t4, options):
        before = published(t4)
        done = cli(*options("t4", t4))
        assert done.code == 0, done.err
        said = stages(done.err)
        assert list(said) == list(STAGES)
        assert set(said.values()) == {"skipped: its inputs have not changed"}
        after = published(t4)
        assert {n: d for n, (d, _) in after.items()} == {n: d for n, (d, _) in before.items()}
        for name in ("engine.plan", "model.onnx", "golden.npz"):
            assert after[name] == before[name]

    def test_what_is_printed_names_the_verdict_first_and_every_file(self, cli, t4, options):
        done = cli(*options("t4", t4))
        assert done.out.startswith("PASSED: ")
        for name in published(t4):
            assert str(t4 / name) in done.out
        assert "no engine was built here" not in done.out

    def test_json_on_stdout_is_json_alone(self, cli, t4, options):
        done = cli(*options("t4", t4), "--json")
        result = json.loads(done.out)
        assert result["stages"] == dict.fromkeys(STAGES, "skipped")
        assert result["board_command"] is None
        assert Manifest.model_validate_json(json.dumps(result["manifest"])).target == "t4"
        assert ValidationReport.model_validate_json(json.dumps(result["report"])).passed

    def test_a_dry_run_says_what_would_be_skipped_and_writes_nothing(self, cli, t4, options):
        before = {p: p.stat().st_mtime_ns for p in t4.rglob("*")}
        done = cli(*options("t4", t4), "--dry-run")
        assert done.code == 0
        assert set(stages(done.err).values()) == {"would skip"}
        assert {p: p.stat().st_mtime_ns for p in t4.rglob("*")} == before

    def test_a_dry_run_of_a_new_build_makes_not_even_the_folder(
        self, cli, tmp_path, options, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        done = cli(*options("t4", tmp_path / "new" / "out"), "--dry-run")
        assert done.code == 0
        assert stages(done.err) == dict.fromkeys(STAGES, "would run")
        assert list(tmp_path.iterdir()) == []

    def test_only_what_depends_on_a_changed_option_runs(self, cli, t4, tmp_path, options):
        recipe = tmp_path / "mine.toml"
        text = (ROOT / "targets" / "t4.toml").read_text()
        recipe.write_text(text.replace("argmax_agreement = 0.9", "argmax_agreement = 0.8"))
        done = cli(*options(str(recipe), t4), "--dry-run")
        said = stages(done.err)
        assert {s for s, what in said.items() if what == "would run"} == {"engine", "validate"}

    def test_a_damaged_intermediate_file_is_made_again(self, cli, t4, options):
        before = published(t4)
        native = t4 / ".stormrt" / "native.onnx"
        native.write_bytes(native.read_bytes()[:-1])
        done = cli(*options("t4", t4))
        assert done.code == 0
        ran = {s for s, what in stages(done.err).items() if what.startswith("done")}
        assert ran == {"lower"}, "what it makes is what was there, so that later stages stand"
        after = published(t4)
        assert {n: d for n, (d, _) in after.items()} == {n: d for n, (d, _) in before.items()}

    def test_a_damaged_published_file_is_put_right(self, cli, t4, options):
        good = digest(t4 / "engine.plan")
        (t4 / "engine.plan").write_bytes(b"damaged")
        (t4 / "model.onnx").unlink()
        assert cli(*options("t4", t4)).code == 0
        assert digest(t4 / "engine.plan") == good
        read_bundle(t4)

    def test_an_engine_of_other_options_does_not_survive_beside_a_manifest_that_has_none(
        self, cli, t4, options
    ):
        done = cli(*options("orin-nano-8g", t4))
        assert done.code == 0, done.err
        assert not (t4 / "engine.plan").exists()
        manifest, target = read_bundle(t4)
        assert manifest.engine is None
        assert target.id == "orin-nano-8g"
        assert set(published(t4)) == PLUGIN_BUNDLE_FILES

    def test_a_runtime_of_the_target_that_cannot_build_here_gives_a_bundle(self, cli, t4, options):
        done = cli(*options("t4", t4, runtime="tensorrt"))
        assert done.code == 0, done.err
        manifest, _ = read_bundle(t4)
        assert (manifest.runtime, manifest.lowering) == ("tensorrt", "plugin")
        assert not (t4 / "engine.plan").exists()

    def test_the_output_folder_may_be_the_current_one(self, cli, t4, options, monkeypatch):
        monkeypatch.chdir(t4)
        done = cli(*options("t4", ".", runtime="tensorrt"), "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["board_command"] == "stormrt build t4/"


class TestOrin:
    def test_the_bundle_has_the_plugin_graph_and_no_engine(self, orin):
        from stormrt.pipeline.onnx_file import load_onnx

        assert set(published(orin)) == PLUGIN_BUNDLE_FILES
        manifest, target = read_bundle(orin)
        assert target.device.sm == 87
        assert (manifest.runtime, manifest.lowering, manifest.engine) == (
            "tensorrt",
            "plugin",
            None,
        )
        assert [(p.name, p.count) for p in manifest.plugins] == [
            ("SelectiveScan2D", 5),
            ("SpatialUnitGather", 1),
        ]
        model = load_onnx(orin / "model.onnx")
        assert not model.functions
        assert len(ops(model, "SelectiveScan2D")) == 5

    def test_the_exact_command_for_the_board_is_printed(self, cli, orin, options):
        done = cli(*options("orin-nano-8g", orin))
        assert done.code == 0, done.err
        assert "no engine was built here" in done.out
        told = [line.strip() for line in done.out.splitlines()]
        assert "stormrt build orin/" in told
        assert "python3 orin/build_engine.py" in told

    def test_the_command_is_quoted_where_the_folder_needs_it(self, cli, orin, options):
        out = orin.rename(orin.with_name("my build"))
        done = cli(*options("orin-nano-8g", out), "--json")
        assert json.loads(done.out)["board_command"] == "stormrt build 'my build'/"

    def test_the_report_says_why_there_is_no_engine(self, orin):
        row = ValidationReport.read(orin / "report.json").rows[1]
        assert (row.runtime, row.status) == ("tensorrt", "not run")
        assert row.reason.startswith("not built here: ")
        assert len(row.reason) > len("not built here: None")

    def test_nothing_published_holds_a_path_of_this_machine(self, orin):
        for name in ("manifest.json", "report.json", "report.md", "model.onnx"):
            content = (orin / name).read_bytes()
            for path in (b"/tmp", str(ROOT).encode(), str(orin.parent.parent).encode()):
                assert path not in content, name

    def test_force_runs_every_stage_and_gives_the_same_bytes(self, cli, orin, options):
        before = published(orin)
        done = cli(*options("orin-nano-8g", orin), "--force")
        assert done.code == 0, done.err
        said = stages(done.err)
        assert list(said) == [name for name in STAGES if name != "engine"]
        assert all(what.startswith("done in") for what in said.values())
        after = published(orin)
        assert {n: d for n, (d, _) in after.items()} == {n: d for n, (d, _) in before.items()}

    def test_from_runs_a_stage_and_all_after_it(self, cli, orin, options):
        done = cli(*options("orin-nano-8g", orin), "--from", "precision")
        assert done.code == 0, done.err
        said = stages(done.err)
        assert {s for s, w in said.items() if w.startswith("done")} == {
            "precision",
            "lower",
            "validate",
        }
        assert said["golden"] == said["export"] == "skipped: its inputs have not changed"

    def test_from_needs_the_earlier_stages_to_have_run_with_these_options(
        self, cli, orin, tmp_path, options
    ):
        before = published(orin)
        for out, changes in ((tmp_path / "new", {}), (orin, {"seed": 3})):
            done = cli(*options("orin-nano-8g", out, **changes), "--from", "validate")
            assert done.code == 2
            assert "'golden' has not been run with these options" in done.err
        assert published(orin) == before

    def test_to_stops_after_a_stage_and_publishes_nothing(self, cli, tmp_path, options):
        out = tmp_path / "out"
        done = cli(*options("orin-nano-8g", out), "--to", "golden")
        assert done.code == 0, done.err
        assert published(out) == {}
        assert (out / ".stormrt" / "golden.npz").is_file()
        said = stages(done.err)
        assert said["golden"].startswith("done in")
        assert {said[s] for s in ("export", "precision", "lower", "validate")} == {"not asked for"}

    def test_to_leaves_an_earlier_result_as_it_was(self, cli, orin, options):
        before = published(orin)
        done = cli(*options("orin-nano-8g", orin, precision="fp32"), "--to", "lower")
        assert done.code == 0, done.err
        assert published(orin) == before

    def test_two_builds_in_one_folder_at_once_are_refused(self, cli, orin, options):
        before = published(orin)
        with folder_lock(orin / ".stormrt"):
            done = cli(*options("orin-nano-8g", orin))
        assert done.code == 2
        assert "another stormrt build is writing to this folder" in done.err
        assert published(orin) == before
        assert cli(*options("orin-nano-8g", orin)).code == 0

    def test_leftovers_of_killed_builds_are_swept(self, cli, orin, options):
        left = [orin / ".engine.plan.abc.tmp", orin / ".stormrt" / ".exported.onnx.xyz.tmp"]
        for path in left:
            path.write_bytes(b"half")
        mine = orin / ".mine.tmp"
        mine.write_text("not stormrt's")
        assert cli(*options("orin-nano-8g", orin)).code == 0
        assert not [path for path in left if path.exists()]
        assert mine.exists()


class TestVerdict:
    @pytest.fixture
    def strict(self, tmp_path):
        """The Nano's recipe, with a tolerance that no arithmetic meets."""
        recipe = dump_target(load_target("orin-nano-8g"))
        lines = [
            'extends = "orin"',
            'id = "strict"',
            'description = "a test"',
            "[device]",
            *(f"{k} = {recipe['device'][k]}" for k in ("memory_mib", "bandwidth_gb_s", "sm_count")),
            "[build]",
            "workspace_mib = 1024",
            "[tolerance.fp16]",
            "rel_l2 = 1e-12",
        ]
        path = tmp_path / "strict.toml"
        path.write_text("\n".join(lines))
        return path

    def test_an_impossible_tolerance_exits_1_and_names_the_first_layer(
        self, cli, orin, options, strict
    ):
        done = cli(*options(str(strict), orin))
        assert done.code == 1
        first = done.out.splitlines()[0]
        assert first.startswith("FAILED: ")
        assert "the graphs part at patch_embed" in first
        assert "is over 1e-12" in done.out
        report = ValidationReport.read(orin / "report.json")
        assert not report.passed
        assert report.first_diverging_layer == "patch_embed"
        assert "**FAILED" in (orin / "report.md").read_text()
        assert "Traceback" not in done.err

    def test_the_verdict_is_remembered(self, cli, orin, options, strict):
        assert cli(*options(str(strict), orin)).code == 1
        again = cli(*options(str(strict), orin), "--json")
        assert again.code == 1
        assert json.loads(again.out)["stages"]["validate"] == "skipped"
        assert json.loads(again.out)["report"]["passed"] is False


def test_a_process_of_its_own_exits_as_it_should_with_nothing_but_the_result_on_stdout(
    orin, options
):
    arguments = [*options("orin-nano-8g", orin), "--json", "--dry-run"]
    good = run_stormrt(*arguments, cwd=orin.parent)
    assert good.returncode == 0, good.stderr
    assert set(json.loads(good.stdout)["stages"]) == set(STAGES)
    assert "validate" in good.stderr
    bad = run_stormrt(*arguments, "--batch", 0, cwd=orin.parent)
    assert bad.returncode == 2
    assert json.loads(bad.stdout)["error"]["where"] == "--batch"
    assert "Traceback" not in bad.stderr


def test_the_same_build_in_another_folder_gives_the_same_bytes(cli, orin, options, tmp_path):
    other = tmp_path / "a much longer name of a folder" / "out"
    other.mkdir(parents=True)
    shutil.copytree(orin / ".stormrt", other / ".stormrt")
    assert cli(*options("orin-nano-8g", other), "--from", "validate").code == 0
    assert {n: d for n, (d, _) in published(other).items()} == {
        n: d for n, (d, _) in published(orin).items()
    }
