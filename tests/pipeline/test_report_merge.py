# SPDX-License-Identifier: Apache-2.0
"""``stormrt report``: one table of a workstation's and devices' reports.

What can go wrong: a number is shown for what nobody ran; a report of another model is compared
without a word; a damaged file gives a traceback.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stormrt.errors import InputError
from stormrt.pipeline.device.records import FileDigest
from stormrt.pipeline.device.report import (
    Benchmark,
    Conditions,
    DeviceReport,
    EngineResult,
    Latency,
    MachineFacts,
    ModelFacts,
    Validation,
    to_json,
)
from stormrt.pipeline.metrics import Metrics
from stormrt.pipeline.report_merge import MergedReport, merge_files
from stormrt.pipeline.report_tables import device_to_console, merged_to_console

METRICS = Metrics(18, 0.1, 0.01, 0.0123, 0.02, 0.9999, 1.0)
CONDITIONS = Conditions("MAXN", 1300.5, 1301.0, True, 3199.0, 2201.6, 51.5, "unknown")
LATENCY = Latency(4.25, 4.5, 5.0, 4.3, 4.2, 5.1)
RAN = Benchmark(
    "done", "", 1, True, 60, 200, LATENCY, replace(LATENCY, p50_ms=5.75), CONDITIONS, CONDITIONS
)
NOT_RUN = Benchmark("not run", "no GPU here", 1, False, 0, 0, None, None, None, None)


def device_report(**changes: object) -> DeviceReport:
    """A report of an AGX Orin."""
    engine = EngineResult(
        file=FileDigest("engine.plan", "a" * 64, 5 << 20),
        onnx_sha256="b" * 64,
        precision="fp16",
        runtime="tensorrt",
        runtime_version="10.3.0",
        sm=87,
        build_s=300.5,
        workspace_mib=4096,
        timing_cache="new",
        plugin_libraries=(FileDigest("libstormrt_plugins.so", "c" * 64, 1),),
        warnings=("a warning",),
        validation=Validation("passed", "", METRICS),
        benchmark=RAN,
    )
    report = DeviceReport(
        kind="device report",
        schema_version=1,
        made_by="stormrt build, stormrt 0",
        target="orin-agx-64g",
        model=ModelFacts("vmamba_tiny_s1l8", 224, 224, 1, False, 2),
        golden_sha256="d" * 64,
        machine=MachineFacts(
            "Jetson AGX Orin", "Orin", 87, "Linux 5.15", "3.10.12", "6.2", "36.4.3", "12.6", "540.4"
        ),
        recipe_workspace_mib=8192,
        free_memory_mib=50000,
        engines=(engine,),
    )
    return replace(report, **changes)


def write(path: Path, report: DeviceReport) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(report))
    return path


def text_of(renderable: object) -> str:
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_a_boards_numbers_are_in_its_row(tmp_path):
    merged = merge_files([write(tmp_path / "orin.json", device_report())])
    (row,) = merged.rows
    assert (row.target, row.gpu, row.precision) == ("orin-agx-64g", "Orin", "fp16")
    assert (row.runtime, row.runtime_version, row.size_bytes) == ("tensorrt", "10.3.0", 5 << 20)
    assert (row.status, row.rel_l2, row.argmax_agreement) == ("passed", 0.0123, 1.0)
    assert (row.p50_ms, row.call_p50_ms, row.power_mode) == (4.25, 5.75, "MAXN")
    shown = text_of(merged_to_console(merged))
    for part in ("tensorrt 10.3.0", "Orin", "5.00", "1.23e-02", "100.0%", "4.25 ms", "5.75 ms"):
        assert part in shown
    assert "not run" not in shown


def test_what_was_not_run_reads_so(tmp_path):
    report = device_report()
    engine = replace(
        report.engines[0], validation=Validation("not run", "no GPU here", None), benchmark=NOT_RUN
    )
    merged = merge_files([write(tmp_path / "a.json", replace(report, engines=(engine,)))])
    (row,) = merged.rows
    assert (row.gpu, row.rel_l2, row.p50_ms, row.power_mode) == (None,) * 4
    shown = text_of(merged_to_console(merged))
    assert shown.count("not run") >= 5
    assert "no GPU here" in shown


def test_a_failure_is_shown_with_its_reason(tmp_path):
    report = device_report()
    failed = Validation("failed", "relative L2 0.5 is over 0.01", replace(METRICS, rel_l2=0.5))
    report = replace(report, engines=(replace(report.engines[0], validation=failed),))
    assert not report.passed
    shown = text_of(merged_to_console(merge_files([write(tmp_path / "a.json", report)])))
    assert "FAILED" in shown
    assert "relative L2 0.5 is over 0.01" in shown


def test_a_device_tells_conditions_and_how_it_was_built():
    shown = text_of(device_to_console(device_report()))
    for part in ("workspace 4096 MiB (recipe 8192, free 50000)", "timing cache new", "CUDA graph"):
        assert part in shown
    for part in (
        "p99 5",
        "power mode MAXN",
        "(locked)",
        "51.5 degrees C",
        "unknown W",
        "a warning",
    ):
        assert part in shown


def test_reports_of_different_models_are_told_apart(tmp_path):
    one = write(tmp_path / "a.json", device_report())
    model = ModelFacts("vmamba_tiny_s1l8", 224, 224, 4, True, 0)
    other = write(tmp_path / "b.json", device_report(model=model))
    assert len(merge_files([one, one]).models) == 1
    merged = merge_files([one, other])
    assert merged.models == (
        "vmamba_tiny_s1l8, 224x224, batch 1, 2 reductions",
        "vmamba_tiny_s1l8, 224x224, batch 4 (dynamic)",
    )
    assert "different models" in text_of(merged_to_console(merged))


def test_infinite_distances_survive_the_file(tmp_path):
    report = device_report()
    far = replace(METRICS, rel_l2=float("inf"), cosine=-1.0)
    failed = Validation("failed", "far", far)
    report = replace(report, engines=(replace(report.engines[0], validation=failed),))
    path = write(tmp_path / "a.json", report)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    merged = merge_files([path])
    assert merged.rows[0].rel_l2 == float("inf")
    assert MergedReport.model_validate_json(merged.to_json()) == merged


def remove(raw: dict, *place: str | int) -> None:
    *holders, last = place
    for key in holders:
        raw = raw[key]
    del raw[last]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.update(schema_version=2),
        lambda raw: raw.update(surprise=1),
        lambda raw: remove(raw, "target"),
        lambda raw: remove(raw, "engines", 0, "validation", "status"),
        lambda raw: raw["engines"][0].update(surprise=1),
        lambda raw: raw["engines"][0]["benchmark"]["engine"].update(p50_ms="fast"),
        lambda raw: raw["engines"][0]["benchmark"]["before"].update(temperature_c="warm"),
        lambda raw: raw["machine"].update(surprise=1),
    ],
)
def test_what_the_schema_does_not_know_is_refused(tmp_path, damage):
    raw = json.loads(to_json(device_report()))
    damage(raw)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="damaged or of another version"):
        merge_files([path])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"7"])
def test_what_is_no_report_is_refused(tmp_path, content):
    for name in ("device_report.json", "report.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="damaged or of another version"):
            merge_files([tmp_path / name])


def test_a_missing_file_and_a_folder_without_reports_are_named(tmp_path):
    with pytest.raises(InputError, match="could not be read"):
        merge_files([tmp_path / "nowhere.json"])
    with pytest.raises(InputError, match="the folder has no report"):
        merge_files([tmp_path])
    with pytest.raises(InputError, match="no report is named"):
        merge_files([])
