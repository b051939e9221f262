# SPDX-License-Identifier: Apache-2.0
"""Figures in the docs are those of the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import int8_report, render_figures
from benchmarks.operator_bench import plots, tables
from stormrt.plugins.derive.cpp_header import source_digest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "render_figures.py"
RESULTS = ROOT / "benchmarks" / "results"


def state(median):
    return {"median": median, "p10": median, "p90": median}


@pytest.fixture
def measured():
    """Results of one shape, as benchmarks/plugins.py writes them."""
    times = {
        name: {"graph": state(ms), "no_graph": state(2 * ms), "cold": state(3 * ms)}
        for name, ms in (("kernel", 0.02), ("kernel_best", 0.01), ("copy", 0.005), ("triton", 0.04))
    }
    return {
        "schema_version": 2,
        "environment": {"gpu": "Some GPU", "torch": "2.11.0"},
        "copy_gb_s": 3000.0,
        "scan_fp16_n1": [
            {
                "shape": [1, 2, 3, 4],
                "bytes": 1234567,
                "default_ms": 0.02,
                "best_ms": 0.01,
                "cold_ms": 0.03,
                "pytorch_ms": 0.5,
                "roofline_ms": 0.004,
                "roofline_share": 0.4,
                "cold_roofline_share": 0.13,
                "peers": {
                    "mamba_ssm": {"not_timed": "not built: no module"},
                    "triton": {"version": "3.6.0"},
                },
                "times": times,
            }
        ],
    }


def test_the_docs_hold_the_figures_of_the_committed_results():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_block_without_markers_is_refused():
    render = render_figures.render
    assert render("<!-- a:begin -->\nold\n<!-- a:end -->", "a", "new").count("new")
    with pytest.raises(SystemExit, match="0 pairs"):
        render("no markers", "a", "new")


def test_what_was_measured_is_in_the_tables_and_the_rest_reads_not_run(measured):
    kernels = tables.scan_kernels(measured)
    row = "| 1 x 2 x 3 x 4 | 1.23 | 20.0 | 10.0 | 30.0 | 40.0 | 5.0 | 15.0 | 4.0 | 40% | 13% |"
    assert row in kernels
    assert "memcpy" not in kernels
    peers = tables.scan_peers(measured)
    # Four times the kernel: Triton with its copies; PyTorch is slower, mamba-ssm was not built.
    row = "| 10.0 | not run | not run | not run | 40.0 | 500 | not run | 4.0 |"
    assert row in peers
    assert "mamba_ssm: not built: no module." in peers
    for part in (tables.movers, tables.gpu_model, tables.checked):
        assert "not run" in part(measured)
    for part in (tables.profile, tables.resources, tables.launches):
        assert "not run" in part(None)


def test_results_of_before_are_told_from_those_of_now(measured):
    measured["schema_version"] = 1
    row = measured["scan_fp16_n1"][0]
    del row["times"], row["peers"], row["cold_roofline_share"]
    text = tables.scan_kernels(measured)
    assert "| 20.0 | 10.0 | 30.0 | not run | not run | not run | 4.0 | 40% | 13% |" in text
    assert "memcpy" in text


def kernel(name, *, spill=0):
    return {
        "kernel": name,
        "registers": 64,
        "static_shared_bytes": 512,
        "spill_store_bytes": spill,
        "spill_load_bytes": spill,
        "bound_threads": 448,
    }


def launch(shape, dynamic):
    return {
        "shape": shape,
        "dtype": "float16",
        "kernel": "stagedScan<Cut<7>>",
        "blocks": 96,
        "threads": 256,
        "static_shared_bytes": 512,
        "dynamic_shared_bytes": dynamic,
        "resident_warps": 8,
        "limit": "shared memory",
    }


def test_spills_and_launches_over_48_kib_are_named():
    fixed = kernel("lineCopy<int>") | {"resident_warps": 28, "limit": "registers"}
    content = {
        "environment": {"nvcc": "13.0", "sources": "0123456789abcdef"},
        "multiprocessors": {"sm_75": {"warps": 32}, "sm_87": {"warps": 48}},
        "kernels": {
            "sm_75": [kernel("stagedScan<Cut<7>>"), kernel("stagedScan<Cut<8>>"), fixed],
            "sm_87": [kernel("stagedScan<Cut<7>>", spill=4)],
        },
        "devices": {
            "t4": {
                "arch": "sm_75",
                "facts": {"multiprocessors": 40, "shared_bytes": 65536},
                "launches": [launch([1, 2, 3, 4], 48 * 1024 - 512)],
            },
            "orin": {
                "arch": "sm_87",
                "facts": {"multiprocessors": 16, "shared_bytes": 166912},
                "launches": [launch([1, 2, 3, 4], 48 * 1024)],
            },
        },
    }
    resources = tables.resources(content)
    assert "| stagedScan | sm_75 | 2 | 64 | none | 512 | 448 | below |" in resources
    assert "| stagedScan | sm_87 | 1 | 64 | 1 (at most 8 bytes) | 512 | 448 | below |" in resources
    assert "| 28 of 32 (registers) |" in resources
    assert "No kernel spills on sm_75." in resources
    launches = tables.launches(content)
    row = "| FP16 | 1 x 2 x 3 x 4 | staged, 96 x 256 | 48.0 | 8 of 32 (shared memory) | staged,"
    assert row in launches
    assert "None is over 48 KiB on t4. Over 48 KiB on orin: FP16 1 x 2 x 3 x 4." in launches


def test_the_compilers_report_is_of_these_sources():
    told = json.loads((RESULTS / "plugin_resources.json").read_text())["environment"]["sources"]
    assert told == source_digest(), "run python -m benchmarks.plugin_resources"


def test_bounds_on_boards_are_labelled_and_take_the_counted_instructions():
    assert "**Estimates; nothing was measured" in tables.board_estimates(None)
    kernel = {"instructions_per_element": 470.0}
    rows = [{"shape": [16, 96, 56, 56], "kernels": [kernel]}]
    text = tables.board_estimates({"environment": {"gpu": "Some GPU"}, "rows": rows})
    assert "as counted on Some GPU" in text
    # Ten times the instructions: the issue of instructions binds on the T4 too.
    assert [line.split(" | ")[2] for line in text.splitlines() if "16 x 96" in line] == ["issue"]


@pytest.mark.parametrize(
    ("file", "source"), [(file, source) for file, source, _ in render_figures.PLOTS]
)
def test_plots_are_there_of_the_committed_results_and_in_the_docs(file, source):
    path = ROOT / file
    assert plots.digest((RESULTS / source).read_bytes()) in path.read_text()
    shown = f"]({path.relative_to(ROOT / 'docs')})"
    assert any(shown in document.read_text() for document in (ROOT / "docs").glob("*.md"))


def test_a_plot_is_the_same_each_time_and_shows_what_was_measured(measured, tmp_path):
    drawn = []
    for name in ("a.svg", "b.svg"):
        plots.draw_scan(measured, tmp_path / name, plots.digest(b"results"))
        drawn.append((tmp_path / name).read_text())
    assert drawn[0] == drawn[1]
    assert plots.digest(b"results") in drawn[0]
    for text in ("1 x 2 x 3 x 4", "Triton with copies", "roofline", "Some GPU"):
        assert text in drawn[0]
    assert "mamba-ssm" not in drawn[0]


def test_a_plot_of_other_results_is_found_stale(monkeypatch, tmp_path):
    file, source, draw = plots.PLOTS[0]
    content = json.loads((RESULTS / source).read_text())
    (tmp_path / source).write_text(json.dumps({**content, "copy_gb_s": 1.0}))
    monkeypatch.setattr(render_figures, "RESULTS", tmp_path)
    monkeypatch.setattr(render_figures, "PLOTS", ((file, source, draw),))
    assert render_figures.stale_plots(write=False) == [file]


def test_int8_tables_say_what_was_lost_and_what_was_not_run():
    def row(kind, precision, top1, **more):
        facts = {"model": "m", "plan": "keep=1", "kind": kind, "precision": precision}
        facts |= {"observer": None, "smoothing": None, "images": 100, "onnx_bytes": 2**20}
        return {**facts, "top1": top1, **more}

    content = {
        "rows": [
            row("headline", "fp32", 0.93),
            row("headline", "int8", 0.92, observer="mse", smoothing=True),
            row("observers", "fp32", 0.9),
            row("observers", "int8", 0.85, observer="entropy", smoothing=False),
        ]
    }
    cells = [cell.strip() for cell in int8_report.headline(content).splitlines()[-1].split("|")]
    assert cells[4:9] == ["93.00", "not run", "92.00", "not run", "1.00"]
    cells = [cell.strip() for cell in int8_report.observers(content).splitlines()[-1].split("|")]
    assert cells[2:9] == ["entropy", "100", "90.00", "not run", "not run", "85.00", "5.00"]
    assert "not run" in int8_report.headline(None) + int8_report.observers(None)
