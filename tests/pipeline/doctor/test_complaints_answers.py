# SPDX-License-Identifier: Apache-2.0
"""Checks of what an engine answers and how fast: reports, gates, power modes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stormrt.pipeline import probe
from stormrt.pipeline.doctor.subject import GraphFacts
from stormrt.pipeline.metrics import Metrics
from stormrt.pipeline.schema import (
    GateReport,
    GateRow,
    ValidationRow,
)
from tests.pipeline.doctor.boards import (
    NANO,
    ORIN,
    facts,
    finding,
    machine,
    orin,
    plan,
    subject,
)
from tests.pipeline.doctor.folders import GRAPH, as_int8, asked, report, row
from tests.runtime.folders import write_folder


def test_what_the_report_says_of_the_outputs_is_told(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan())

    def seen(*rows: ValidationRow):
        return facts(subject=asked(folder, report(folder, *rows)))

    assert finding("fp16-wrong", facts(subject=asked(folder))).status == "cannot tell"
    good = row("tensorrt", "passed")
    assert finding("fp16-wrong", seen(good)).status == "ok"
    bad = finding("fp16-wrong", seen(good, row("onnxruntime", "failed", "NaN in the logits")))
    assert bad.status == "problem"
    assert "NaN in the logits; the first layer that parts is layers.2.blocks.4" in bad.found
    half = finding("fp16-wrong", seen(row("onnxruntime", "passed"), row("tensorrt", "not run")))
    assert half.status == "cannot tell"
    assert "not run: tensorrt" in half.found
    assert finding("fp16-wrong", seen(row("tensorrt", "not run"))).status == "cannot tell"


def gate_row(precision: str, top1: float | None, latency: float | None) -> GateRow:
    return GateRow(
        precision=precision,  # type: ignore[arg-type]  # one of the three
        onnx_bytes=1,
        engine_bytes=None,
        metrics=Metrics(600, 0.1, 0.1, 0.1, 0.1, 1.0, 1.0),
        top1=top1,
        latency_ms=latency,
    )


def gate(top1: tuple[float | None, float | None], ms: tuple[float | None, float | None]):
    rows = (gate_row("int8", top1[0], ms[0]), gate_row("fp16", top1[1], ms[1]))
    lost = top1[0] is not None and top1[1] is not None and top1[1] - top1[0] > 0.01
    reasons = ("top-1 loses too much",) if lost else ()
    return GateReport(
        passed=not lost, reasons=reasons, rows=rows, labelled="data", images=600, worst=()
    )


@pytest.mark.parametrize(
    ("top1", "status", "said"),
    [
        ((0.92, 0.925), "ok", "top-1 92.00 %, FP16 has 92.50 %, of 600 images"),
        ((0.48, 0.56), "problem", "top-1 loses too much"),
        ((None, None), "cannot tell", "--labelled"),
    ],
)
def test_what_int8_loses_is_read_from_the_gate(tmp_path, top1, status, said) -> None:
    folder = as_int8(write_folder(tmp_path / "built", plan()))
    told = report(folder, gate=gate(top1, (None, None)))
    found = finding("int8-accuracy", facts(subject=asked(folder, told)))
    assert found.status == status
    assert said in found.found


def test_an_int8_engine_that_the_gate_refused_is_a_problem(tmp_path) -> None:
    folder = as_int8(write_folder(tmp_path / "built", plan()), refused="a bad scale")
    found = finding("int8-accuracy", facts(subject=asked(folder)))
    assert found.found == "the gate refused INT8: a bad scale"
    plain = write_folder(tmp_path / "plain", plan())
    assert finding("int8-accuracy", facts(subject=asked(plain))).found == "the build is FP16"


@pytest.mark.parametrize(
    ("ms", "status"),
    [((131.8, 65.6), "problem"), ((3.0, 4.0), "ok"), ((None, None), "cannot tell")],
)
def test_int8_that_is_slower_is_a_problem_where_both_were_timed(tmp_path, ms, status) -> None:
    folder = as_int8(write_folder(tmp_path / "built", plan()))
    told = report(folder, gate=gate((None, None), ms))
    found = finding("int8-slower", facts(subject=asked(folder, told)))
    assert found.status == status
    assert ("fp16" in str(found.mend)) == (status == "problem")


def test_int8_through_tensorrt_rtx_on_a_t4_only_costs(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan(b"vtrt"), runtime="tensorrt_rtx")
    found = finding("int8-slower", facts(subject=asked(as_int8(folder))))
    assert found.status == "problem"
    assert (
        finding("int8-slower", facts(subject=asked(as_int8(folder, precision="fp16")))).status
        == "ok"
    )


def test_an_engine_that_would_be_fp32_in_silence_is_a_problem(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan())
    fp32 = GraphFacts(18, {"fp32": 1000}, quantised=False)
    found = finding("silent-fp32", facts(subject=asked(folder, graph=fp32)))
    assert found.status == "problem"
    assert found.found == "0 % of the weights are FP16, though the build is FP16"
    assert finding("silent-fp32", facts(subject=asked(folder, graph=GRAPH))).status == "ok"
    int8 = asked(as_int8(folder), graph=GRAPH)
    assert "no Q/DQ" in finding("silent-fp32", facts(subject=int8)).found


def test_a_graph_alone_may_be_fp32_on_purpose() -> None:
    fp32 = GraphFacts(18, {"fp32": 1000}, quantised=False)
    found = finding("silent-fp32", facts(subject=subject(graph=fp32)))
    assert found.status == "cannot tell"
    assert "the engine is FP32" in found.found
    assert finding("silent-fp32", facts(subject=subject(graph=GRAPH))).status == "ok"


def test_a_power_mode_below_the_best_is_a_problem_with_the_boards_own_number() -> None:
    slow = machine(ORIN, replace(NANO, power_mode="15W"), cuda="12.6")
    found = finding("slow-board", orin(machine=slow))
    assert found.status == "problem"
    assert found.mend == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    silent = machine(ORIN, replace(NANO, power_mode=probe.UNKNOWN))
    assert finding("slow-board", orin(machine=silent)).status == "cannot tell"
    assert finding("slow-board", orin()).status == "ok"
