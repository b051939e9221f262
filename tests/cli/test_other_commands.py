# SPDX-License-Identifier: Apache-2.0
"""The other verbs: export, validate, inspect, targets, doctor, and building from a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stormrt.errors import InputError
from stormrt.pipeline.device_build import plugin_libraries, read_bundle
from stormrt.pipeline.onnx_file import load_onnx, plugin_uses
from stormrt.storm import build_vmamba
from stormrt.targets import list_targets
from tests.pipeline.support import CLASSES, GATED, SMALL, digest, published

EXPORT = ["export", "--model", SMALL, "--classes", CLASSES, "--size", "32"]
EXPORT += ["--storm", "keep=1,stage=2"]


class TestBundle:
    def test_a_bundle_for_an_orin_cannot_be_built_without_its_gpu(self, cli, orin, monkeypatch):
        monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
        before = published(orin)
        done = cli("build", orin)
        assert done.code == 3
        assert "this machine has no SM 8.7" in done.err
        assert "Traceback" not in done.err
        assert published(orin) == before
        assert not (orin / "plugins").exists()  # nothing is compiled for a GPU that is not here

    def test_a_named_plugin_library_that_does_not_exist_is_refused(self, orin, monkeypatch):
        manifest, target = read_bundle(orin)
        monkeypatch.setenv("STORMRT_PLUGIN_LIB", "/nowhere/lib.so")
        with pytest.raises(InputError, match="does not exist") as refusal:
            plugin_libraries(manifest.plugins, target, orin / "plugins")
        assert "SelectiveScan2D" in str(refusal.value)

    def test_a_library_is_built_for_the_target_where_none_is_named(self, orin, monkeypatch):
        manifest, target = read_bundle(orin)
        monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
        asked = []

        def build(folder, archs):
            asked.append((folder, archs))
            return SimpleNamespace(core=folder / "libstormrt_plugins.so")

        monkeypatch.setattr("stormrt.pipeline.device.plugins.build_library", build)
        found = plugin_libraries(manifest.plugins, target, orin / "plugins")
        assert asked == [(orin / "plugins", (87,))]
        assert found == (orin / "plugins" / "libstormrt_plugins.so",)

    def test_an_engine_built_from_a_bundle_is_entered_in_its_manifest(self, cli, t4):
        built = digest(t4 / "engine.plan")
        manifest = json.loads((t4 / "manifest.json").read_text())
        manifest["engine"] = None
        manifest["files"] = [f for f in manifest["files"] if f["name"] != "engine.plan"]
        (t4 / "manifest.json").write_text(json.dumps(manifest))
        (t4 / "engine.plan").unlink()
        done = cli("build", t4, "--json")
        assert done.code == 0, done.err
        made = json.loads(done.out)["manifest"]
        assert made == json.loads((t4 / "manifest.json").read_text())
        assert made["engine"]["file"]["sha256"] == digest(t4 / "engine.plan") == built
        assert [f["name"] for f in made["files"]].count("engine.plan") == 1

    def test_a_runtime_of_another_lowering_is_refused(self, cli, t4):
        done = cli("build", t4, "--runtime", "tensorrt")
        assert done.code == 2
        assert "native lowering" in done.err
        assert "--runtime tensorrt" in done.err

    @pytest.mark.parametrize("verb", ["build", "validate"])
    @pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
    def test_a_changed_file_is_found(self, cli, orin, verb, name):
        with (orin / name).open("ab") as file:
            file.write(b"x")
        done = cli(verb, orin)
        assert done.code == 2
        assert "has changed since it was made" in done.err
        assert name in done.err

    @pytest.mark.parametrize("verb", ["build", "validate"])
    def test_a_missing_file_is_found(self, cli, orin, verb):
        (orin / "golden.npz").unlink()
        done = cli(verb, orin)
        assert done.code == 2
        assert "is missing" in done.err

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda text: text[:100], "damaged"),
            (lambda text: text.replace('_version": 1', '_version": 9'), "schema_version"),
            (lambda text: text.replace('"target"', '"extra": 1,\n  "target"'), "extra"),
            (lambda text: text.replace('"sm": 87', '"sm": "x"'), "device.sm"),
            (lambda text: text.replace('"runtime": "tensorrt"', '"runtime": "cuda"'), "runtime"),
        ],
    )  # fmt: skip
    def test_a_changed_manifest_is_refused(self, cli, orin, change, words):
        path = orin / "manifest.json"
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
        done = cli("build", orin)
        assert done.code == 2
        assert words in done.err
        assert "Traceback" not in done.err

    def test_a_folder_that_is_no_bundle_is_refused(self, cli, tmp_path):
        done = cli("build", tmp_path)
        assert done.code == 2
        assert "manifest.json could not be read" in done.err

    def test_a_bundle_that_is_being_built_is_not_built_twice(self, cli, t4):
        from stormrt.locking import folder_lock

        with folder_lock(t4 / ".stormrt"):
            done = cli("build", t4)
        assert done.code == 2
        assert "another stormrt build" in done.err


class TestValidate:
    def test_a_build_is_validated_again_from_its_folder_alone(self, cli, orin):
        before = published(orin)
        done = cli("validate", orin, "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report == json.loads((orin / "report.json").read_text())
        assert published(orin) == before

    def test_other_photographs_may_be_given(self, cli, t4, photographs):
        done = cli("validate", t4, "--photos", photographs / "coffee.png", "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["sources"] == ["coffee.png"]
        assert report["rows"][0]["metrics"]["images"] == 1

    def test_the_verdict_is_printed_first(self, cli, t4):
        done = cli("validate", t4)
        assert done.code == 0
        assert done.out.startswith("PASSED: ")

    def test_a_plugin_bundle_without_its_work_folder_cannot_be_validated(self, cli, orin):
        (orin / ".stormrt" / "native.onnx").unlink()
        done = cli("validate", orin)
        assert done.code == 2
        assert "native graph" in done.err

    def test_weights_that_have_changed_are_found(self, cli, orin, options, tmp_path):
        weights = tmp_path / "w.pth"
        torch.save(build_vmamba(SMALL, CLASSES).state_dict(), weights)
        done = cli(*options("orin-nano-8g", orin, checkpoint=weights))
        assert done.code == 0, done.err
        assert cli("validate", orin).code == 0
        moved = weights.rename(tmp_path / "moved.pth")
        done = cli(*options("orin-nano-8g", orin, checkpoint=moved), "--json")
        assert json.loads(done.out)["stages"]["export"] == "skipped", "the bytes are the same"
        assert json.loads(done.out)["report"]["weights"].startswith("moved.pth, SHA-256 ")
        weights = moved
        torch.save(build_vmamba(SMALL, CLASSES).state_dict(), weights)
        done = cli("validate", orin)
        assert done.code == 2
        assert "checkpoint" in done.err
        weights.unlink()
        assert cli("validate", orin).code == 2


class TestExport:
    @pytest.fixture
    def exported(self, monkeypatch, orin):
        """Instead of an export, which takes seconds, the graph that a build has exported."""
        import stormrt.pipeline.export

        def copy(_spec: object, out: Path) -> None:
            shutil.copyfile(orin / ".stormrt" / "exported.onnx", out)

        monkeypatch.setattr(stormrt.pipeline.export, "export", copy)

    def test_the_graph_for_plugins_is_written(self, cli, tmp_path):
        out = tmp_path / "new" / "m.onnx"
        done = cli(*EXPORT, "--out", out, "--lowering", "plugin", "--precision", "fp16", "--json")
        assert done.code == 0, done.err
        told = json.loads(done.out)
        model = load_onnx(out)
        assert told["sha256"] == digest(out)
        assert told["nodes"] == len(model.graph.node)
        assert [p["name"] for p in told["plugins"]] == ["SelectiveScan2D"]
        assert not model.functions
        assert [p.name for p in out.parent.iterdir()] == ["m.onnx"], "no temporary folder is left"

    @pytest.mark.usefixtures("exported")
    def test_the_marker_form_keeps_the_meaning_of_custom_nodes(self, cli, tmp_path):
        done = cli(*EXPORT, "--out", tmp_path / "m.onnx", "--lowering", "marker")
        assert done.code == 0, done.err
        assert load_onnx(tmp_path / "m.onnx").functions
        assert "5 x SelectiveScan2D, version 1" in done.out

    @pytest.mark.usefixtures("exported")
    def test_the_native_form_in_fp32_is_the_default(self, cli, tmp_path):
        assert cli(*EXPORT, "--out", tmp_path / "m.onnx").code == 0
        model = load_onnx(tmp_path / "m.onnx")
        assert plugin_uses(model) == ()
        assert {i.data_type for i in model.graph.initializer} >= {1}
        assert 10 not in {i.data_type for i in model.graph.initializer}, "no FP16"

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            (["--batch", 0], "--batch"),
            (["--batch", -1, "--dynamic-batch"], "--batch"),
            (["--classes", 0], "--classes"),
            (["--size", "17"], "too small"),
            (["--storm", "keep=0"], "out of range"),
            (["--model", "no_such"], "unknown model"),
            (["--checkpoint", "/no/such.pth"], "checkpoint does not exist"),
            (["--out", "/proc/stormrt/m.onnx"], "could not write"),
            (["--out", "/proc/m.onnx"], "could not write"),
            (["--out", "{file}/m.onnx"], "could not write"),
            (["--out", "{folder}"], "--out is a folder"),
        ],
    )
    def test_bad_input_is_refused_and_an_earlier_file_stays(self, cli, tmp_path, extra, words):
        out = tmp_path / "m.onnx"
        out.write_bytes(b"earlier")
        places = {"file": out, "folder": tmp_path}
        arguments = [a.format(**places) if isinstance(a, str) else a for a in extra]
        done = cli(*EXPORT, "--out", out, *arguments)
        assert done.code == 2, done
        assert words in done.err
        assert done.err.count("error: ") == 1
        assert out.read_bytes() == b"earlier"
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

    def test_a_checkpoint_of_another_variant_is_refused_and_an_earlier_file_stays(
        self, cli, tmp_path
    ):
        weights, out = tmp_path / "w.pth", tmp_path / "m.onnx"
        torch.save(build_vmamba(GATED, CLASSES).state_dict(), weights)
        out.write_bytes(b"earlier")
        done = cli(*EXPORT, "--out", out, "--checkpoint", weights)
        assert done.code == 2
        assert f"use --model {GATED}" in done.err
        assert out.read_bytes() == b"earlier"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "w.pth"]


class TestInspect:
    def test_a_folder_an_onnx_file_and_a_checkpoint_tell_what_they_are(self, cli, orin, tmp_path):
        facts = json.loads(cli("inspect", orin, "--json").out)
        assert facts["model"] == SMALL
        assert facts["input"] == "1 x 3 x 32 x 48"
        assert facts["plugins"] == [
            "5 x SelectiveScan2D version 1",
            "1 x SpatialUnitGather version 1",
        ]
        assert facts["engine"] is None

        facts = json.loads(cli("inspect", orin / "model.onnx", "--json").out)
        assert facts["inputs"] == ["images: float32 [1, 3, 32, 48]"]
        assert facts["outputs"] == [f"logits: float32 [1, {CLASSES}]"]
        assert "5 x SelectiveScan2D" in facts["ops"]

        weights = tmp_path / "w.pth"
        model = build_vmamba(GATED, CLASSES)
        torch.save({"model": model.state_dict()}, weights)
        facts = json.loads(cli("inspect", weights, "--json").out)
        assert (facts["variant"], facts["classes"]) == (GATED, CLASSES)
        assert facts["parameters"] == sum(t.numel() for t in model.state_dict().values())
        torch.save({"a.weight": torch.zeros(3)}, weights)
        facts = json.loads(cli("inspect", weights, "--json").out)
        assert facts["variant"] == "none that stormrt knows"

    def test_an_engine_is_told_with_its_gpu(self, cli, t4):
        facts = json.loads(cli("inspect", t4, "--json").out)
        assert facts["engine"].startswith("engine.plan, SM 75, tensorrt_rtx 1.")

    def test_a_table_is_printed_for_people(self, cli, orin):
        done = cli("inspect", orin)
        assert done.code == 0
        assert SMALL in done.out
        assert "SpatialUnitGather" in done.out

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("none.onnx", "no such file or folder"),
            ("notes.txt", "kind of file is not known"),
            ("bad.onnx", "ONNX"),
            ("bad.pth", "cut off, damaged"),
            (".", "manifest.json could not be read"),
        ],
    )
    def test_what_is_unknown_or_damaged_is_refused(self, cli, tmp_path, path, words):
        for name in ("notes.txt", "bad.onnx", "bad.pth"):
            (tmp_path / name).write_text("not that")
        done = cli("inspect", tmp_path / path)
        assert done.code == 2
        assert words in done.err
        assert "Traceback" not in done.err


class TestTargetsAndTheRest:
    def test_every_recipe_is_listed(self, cli):
        listed = json.loads(cli("targets", "list", "--json").out)
        assert tuple(t["id"] for t in listed) == list_targets()
        table = cli("targets", "list").out
        assert all(name in table for name in list_targets())

    def test_a_recipe_is_shown_resolved(self, cli):
        shown = json.loads(cli("targets", "show", "orin-nano-8g", "--json").out)
        assert shown["device"]["sm"] == 87
        table = cli("targets", "show", "t4").out
        assert "device.sm" in table
        assert "runtime.1.name" in table

    def test_an_unknown_recipe_is_refused(self, cli):
        done = cli("targets", "show", "t5")
        assert done.code == 2
        assert "did you mean 't4'" in done.err

    def test_help_names_every_verb_and_the_exit_codes(self, cli):
        done = cli("--help")
        assert done.code == 0
        for verb in ("build", "export", "validate", "evaluate", "classify", "inspect", "doctor"):
            assert verb in done.out
        assert "Exit codes: 0 fine, 1 verdict failed, 2 bad usage" in done.out

    def test_the_version_is_printed(self, cli):
        import stormrt

        assert cli("--version").out == f"stormrt {stormrt.__version__}\n"

    def test_the_doctor_reports_in_json(self, cli):
        done = cli("doctor", "--json")
        checks = json.loads(done.out)
        missing = [c for c in checks if c["group"] == "core" and c["status"] == "missing"]
        assert done.code == (3 if missing else 0)
        assert {"group", "name", "status", "found"} <= set(checks[0])
