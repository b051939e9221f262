# SPDX-License-Identifier: Apache-2.0
"""``stormrt build BUNDLE`` and ``stormrt report`` from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stormrt.pipeline.schema import ValidationReport


def test_a_build_and_a_device_come_into_one_table(cli, t4, tmp_path):
    done = cli("build", t4)
    assert done.code == 0, done.err
    assert "not run: no CUDA driver" in done.out or "p50" in done.out
    board = tmp_path / "from_the_board.json"
    shutil.move(t4 / "device_report.json", board)
    done = cli("report", t4, board, "--json")
    assert done.code == 0, done.err
    merged = json.loads(done.out)
    assert len(merged["models"]) == 1
    assert [row["runtime"] for row in merged["rows"]] == [
        "onnxruntime",
        "tensorrt_rtx",
        "tensorrt_rtx",
    ]
    by_cpu, by_engine, on_board = merged["rows"]
    report = ValidationReport.read(t4 / "report.json")
    assert by_cpu["status"] == "passed"
    assert report.rows[0].end_to_end is not None
    assert by_cpu["rel_l2"] == report.rows[0].end_to_end.rel_l2
    assert by_cpu["size_bytes"] == (t4 / "model.onnx").stat().st_size
    size = (t4 / "engine.plan").stat().st_size
    assert by_engine["size_bytes"] == on_board["size_bytes"] == size
    assert on_board["source"] == str(board)
    assert on_board["p50_ms"] is None or on_board["p50_ms"] > 0
    shown = cli("report", t4 / "report.json", board)
    assert shown.code == 0
    assert shown.out.count("tensorrt_rtx") >= 2


def test_an_archive_is_built_from_and_told_where_it_went(cli, t4, tmp_path):
    (t4 / "engine.plan").unlink()
    manifest = json.loads((t4 / "manifest.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f["name"] != "engine.plan"]
    manifest["engine"] = None
    (t4 / "manifest.json").write_text(json.dumps(manifest))
    made = shutil.make_archive(str(tmp_path / "board"), "gztar", t4)
    done = cli("build", made, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["out"] == str(tmp_path / "board")
    assert said["report"]["engines"][0]["file"] == said["manifest"]["engine"]["file"]
    assert (tmp_path / "board" / "device_report.json").is_file()
    again = cli("build", made)
    assert again.code == 2
    assert "there already" in again.err


def test_bad_reports_and_archives_are_one_message(cli, tmp_path):
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK no zip")
    for arguments in (["report", tmp_path / "no.json"], ["report", tmp_path], ["build", bad]):
        done = cli(*arguments)
        assert done.code == 2
        assert done.err.lstrip().startswith("error: ")
        assert "Traceback" not in done.err


def test_a_device_report_of_another_model_does_not_stay(cli, t4, options):
    left = t4 / "device_report.json"
    assert cli("build", t4).code == 0
    assert left.is_file()
    assert cli(*options("t4", t4)).code == 0  # the same build again
    assert left.is_file()
    assert cli(*options("t4", t4, runtime="tensorrt")).code == 0  # its graph is another
    assert not Path(left).exists()
