# SPDX-License-Identifier: Apache-2.0
"""The validation stage: every runtime that can run here, against FP32 PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.pipeline.artifacts import CalibrationFile, EngineArtifact, ModelSpec
from stormrt.pipeline.build import BESIDE_FILES, BuildPlan, Built, layers_name
from stormrt.pipeline.comparison import (
    ONNXRUNTIME,
    Comparison,
    first_diverging_layer,
    run_onnxruntime,
)
from stormrt.pipeline.device.validation import failures
from stormrt.pipeline.engine_layers import describe, multiplied_in, parse_layers
from stormrt.pipeline.golden import read_golden
from stormrt.pipeline.graph_stages import EXPORTED_NAME, FILES
from stormrt.pipeline.model_spec import describe_weights
from stormrt.pipeline.probe import engine_run_blocker
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.schema import (
    GOLDEN_NAME,
    GateReport,
    Tolerances,
    ValidationReport,
    ValidationRow,
)

_TURING = 75
"""Compute capability times ten."""


def validate_build(
    plan: BuildPlan,
    work: Path,
    engine: EngineArtifact | None,
    built: Built | None = None,
    beside: Built | None = None,
    table: CalibrationFile | None = None,
) -> ValidationReport:
    """Validate the native graph in onnxruntime, and the engine where it can run in this process.

    Args:
        plan: The build.
        work: Folder with ``native.onnx``, ``golden.npz`` and perhaps ``engine.plan``.
        engine: The engine, where one was built.
        built: For the gate of INT8: what was built.
        beside: The FP16 build beside it.
        table: Its calibration.

    Raises:
        InputError: A damaged file, or a graph that onnxruntime refuses.
    """
    images, logits, sources = read_golden(work / GOLDEN_NAME)
    recipe = plan.target.tolerance_for(plan.precision, plan.runtime.recipe.name)
    tolerances = Tolerances(
        rel_l2=recipe.rel_l2,
        cosine=recipe.cosine,
        argmax_agreement=recipe.argmax_agreement,
        selection_agreement=recipe.selection_agreement,
    )
    graph = f"native ONNX, {plan.precision}"
    comparison = run_onnxruntime(work / "native.onnx", plan.spec, images, logits)
    rows: tuple[ValidationRow, ...] = (
        judge(ONNXRUNTIME, graph, comparison, tolerances),
        _engine_row(plan, work, engine, images, logits, tolerances),
    )
    failed = [row for row in rows if row.status == "failed"]
    gate = None
    if built is not None and beside is not None and table is not None:
        reasons = tuple(f"{row.runtime}: {row.reason}" for row in failed)
        gate = _gate(plan, work, built, beside, table, comparison, reasons)
    passed = not failed and any(row.status == "passed" for row in rows)
    passed = passed and (gate is None or gate.passed)
    layer = None
    if failed and gate is None:  # rounding drifts away from PyTorch everywhere, and the gate knows
        layer = first_diverging_layer(plan.spec, work / "native.onnx", images, tolerances.rel_l2)
    return ValidationReport(
        passed=passed,
        summary=_summary(plan, rows, passed, layer, gate),
        model=plan.spec,
        storm=plan.spec.plan.describe(),
        weights=_weights(plan.spec),
        target=plan.target.id,
        precision=plan.precision,
        tolerances=tolerances,
        rows=rows,
        first_diverging_layer=layer,
        gate=gate,
        sources=sources,
        tools=tools(),
    )


def _weights(spec: ModelSpec) -> str:
    text = describe_weights(spec)
    if spec.checkpoint is None:
        text += ": the comparison with PyTorch holds, the classes mean nothing"
    return text


def _gate(
    plan: BuildPlan,
    work: Path,
    built: Built,
    beside: Built,
    table: CalibrationFile,
    comparison: Comparison,
    failures: tuple[str, ...],
) -> GateReport:
    from stormrt.calibration.check import read_table
    from stormrt.pipeline.gate import TURING_NOTE, Candidate, local_errors, run_gate
    from stormrt.pipeline.onnx_file import load_onnx
    from stormrt.pipeline.quantize.overflow import search_overflow
    from stormrt.pipeline.quantize.policy import linear_nodes

    images, logits, _ = read_golden(work / GOLDEN_NAME)
    int8, fp16, rules = built.final, beside.final, plan.target.quantization
    assert int8 is not None  # the stages before have run
    assert fp16 is not None
    assert rules is not None  # a recipe with INT8 has them
    runtime = plan.runtime.recipe.name
    natives = work / FILES.native, work / BESIDE_FILES.native
    other = run_onnxruntime(natives[1], plan.spec, images, logits)
    observed = read_table(work / table.file.name)
    errors = local_errors(*natives, observed.smoothing, images, plan.spec.batch)
    exported = load_onnx(work / EXPORTED_NAME)
    notes = [f"FP16: {search_overflow(exported, observed, smoothed=False).describe()}"]
    if built.engine is not None:
        linear = [node.name for node in linear_nodes(exported)]
        notes.append(f"engine: {_multiplied(work, built.engine, linear)}")
    if runtime == "tensorrt_rtx" and plan.target.device.sm == _TURING:
        notes.append(TURING_NOTE)
    return run_gate(
        Candidate("int8", int8, natives[0], comparison.metrics, built.engine),
        Candidate("fp16", fp16, natives[1], other.metrics, beside.engine),
        plan.spec,
        rules,
        failures,
        errors,
        plan.labelled,
        tuple(notes),
    )


def _multiplied(work: Path, engine: EngineArtifact, nodes: list[str]) -> str:
    """In which types the engine computes these nodes, as far as its builder told."""
    path = work / layers_name(engine.file.name)
    lines = path.read_text().splitlines() if path.is_file() else []
    return describe(multiplied_in(parse_layers(lines), nodes), len(nodes))


def _summary(
    plan: BuildPlan,
    rows: tuple[ValidationRow, ...],
    passed: bool,
    layer: str | None,
    gate: GateReport | None,
) -> str:
    what = f"{plan.spec.name} {plan.precision} for {plan.target.id}"
    parts = [f"{row.runtime} {row.status}" for row in rows]
    text = f"{'PASSED' if passed else 'FAILED'}: {what}; {', '.join(parts)}"
    if layer:
        text += f"; the graphs part at {layer}"
    if gate is not None:
        text += f"; the gate {'lets INT8 pass' if gate.passed else 'refuses INT8'}"
        if not gate.passed and gate.worst:
            worst = gate.worst[0]
            text += f"; rounding changes {worst.tensor} most, at {worst.layer}"
    return text


def _engine_row(
    plan: BuildPlan,
    work: Path,
    engine: EngineArtifact | None,
    images: NDArray[np.float32],
    logits: NDArray[np.float32],
    tolerances: Tolerances,
) -> ValidationRow:
    """Run the engine where this process can; say why it did not run where it cannot."""
    runtime = plan.runtime.recipe.name
    if engine is None:
        return _not_run(runtime, "no engine", f"not built here: {plan.runtime.blocker}")
    graph = f"{engine.file.name}, SM {engine.sm // 10}.{engine.sm % 10}"
    blocker = engine_run_blocker(runtime, engine.sm)
    if blocker is not None:
        return _not_run(runtime, graph, blocker)
    from stormrt.pipeline.engine_runner import run_engine

    metrics = run_engine(work / engine.file.name, runtime, images, logits, plan.spec.batch)
    # An engine does not tell which lines it kept.
    comparison = Comparison(metrics, metrics, None)
    return judge(runtime, graph, comparison, tolerances)


def _not_run(runtime: str, graph: str, reason: str) -> ValidationRow:
    return ValidationRow(
        runtime=runtime,
        graph=graph,
        status="not run",
        reason=reason,
        metrics=None,
        end_to_end=None,
        selection_agreement=None,
    )


def judge(
    runtime: str, graph: str, comparison: Comparison, tolerances: Tolerances
) -> ValidationRow:
    """Compare a comparison with what the recipe allows."""
    metrics, agreement = comparison.metrics, comparison.selection_agreement
    reasons = failures(metrics, tolerances)
    if agreement is not None and not agreement >= tolerances.selection_agreement:
        reasons.append(
            f"{agreement:.1%} of the kept lines are PyTorch's, less than "
            f"{tolerances.selection_agreement:.1%}"
        )
    return ValidationRow(
        runtime=runtime,
        graph=graph,
        status="failed" if reasons else "passed",
        reason="; ".join(reasons),
        metrics=metrics,
        end_to_end=comparison.end_to_end,
        selection_agreement=agreement,
    )
