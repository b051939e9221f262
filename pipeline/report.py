# SPDX-License-Identifier: Apache-2.0
"""Reports -> Markdown and console tables. Renders, never computes."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from stormrt.pipeline.schema import (
    Classification,
    Evaluation,
    GateReport,
    GateRow,
    ValidationReport,
    ValidationRow,
)

_HEADINGS = (
    "runtime",
    "graph",
    "verdict",
    "relative L2",
    "worst image",
    "max abs",
    "cosine",
    "same argmax",
    "same lines",
    "end to end",
)

_LEGEND = (
    ("relative L2", "norm of the difference from FP32 PyTorch over the norm of its logits"),
    ("worst image", "the largest relative L2 of a single image"),
    ("max abs", "largest difference of a single logit"),
    ("cosine", "of the angle between the logits, over all images"),
    ("same argmax", "share of the images with the same largest logit"),
    (
        "same lines",
        (
            "share of the lines that STORM keeps here and in PyTorch. Where two lines score "
            "nearly equal, a lower precision may keep the other one; the columns to the left "
            "compare with PyTorch following the choice made here"
        ),
    ),
    ("end to end", "relative L2 with each side keeping its own choice of lines"),
)


def _cells(row: ValidationRow) -> tuple[str, ...]:
    m, whole = row.metrics, row.end_to_end
    verdict = row.status.upper() if row.status == "failed" else row.status
    if m is None or whole is None:
        return (row.runtime, row.graph, f"{verdict}: {row.reason}", *["-"] * 7)
    return (
        row.runtime,
        row.graph,
        verdict,
        f"{m.rel_l2:.2e}",
        f"{m.rel_l2_worst:.2e}",
        f"{m.max_abs:.2e}",
        f"{m.cosine:.7f}",
        f"{m.argmax_agreement:.1%}",
        "-" if row.selection_agreement is None else f"{row.selection_agreement:.1%}",
        f"{whole.rel_l2:.2e}",
    )


def _facts(report: ValidationReport) -> list[tuple[str, str]]:
    spec, t = report.model, report.tolerances
    facts = [
        (
            "model",
            f"{spec.name}, {spec.height}x{spec.width}, batch {spec.batch}"
            + (" (dynamic)" if spec.dynamic_batch else ""),
        ),
        ("weights", report.weights),
        ("STORM", report.storm),
        ("target", f"{report.target}, {report.precision}"),
        ("photographs", f"{len(report.sources)}: {', '.join(report.sources)}"),
        (
            "tolerance",
            (
                f"relative L2 <= {t.rel_l2:g}, cosine >= {t.cosine:g}, same argmax >= "
                f"{t.argmax_agreement:.0%}, same lines >= {t.selection_agreement:.0%}"
            ),
        ),
    ]
    if report.first_diverging_layer:
        facts.append(("first diverging layer", report.first_diverging_layer))
    facts.append(("tools", ", ".join(f"{t.name} {t.version}" for t in report.tools)))
    return facts


_GATE_HEADINGS = (
    "precision",
    "ONNX MiB",
    "engine MiB",
    "relative L2",
    "same argmax",
    "top-1",
    "latency",
)


def _gate_cells(row: GateRow) -> tuple[str, ...]:
    m = row.metrics
    return (
        row.precision,
        f"{row.onnx_bytes / 2**20:.2f}",
        "not built" if row.engine_bytes is None else f"{row.engine_bytes / 2**20:.2f}",
        f"{m.rel_l2:.2e}",
        f"{m.argmax_agreement:.1%}",
        "no labels" if row.top1 is None else f"{row.top1:.2%}",
        "not run" if row.latency_ms is None else f"{row.latency_ms:.3g} ms",
    )


def _gate_notes(gate: GateReport) -> list[str]:
    notes = [f"refused: {reason}" for reason in gate.reasons]
    if gate.labelled is not None:
        notes.append(f"top-1 in onnxruntime on {gate.images} images of {gate.labelled}")
    worst = ", ".join(f"{e.tensor} at {e.layer} {e.rel_l2:.1%}" for e in gate.worst)
    notes += gate.notes
    notes.append(f"what rounding changes most, relative L2 of the tensor by itself: {worst}")
    return notes


def to_markdown(report: ValidationReport) -> str:
    """The text of ``report.md``: verdict, table, what the columns mean, provenance."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    failures = [f"- **{r.runtime}**: {r.reason}" for r in report.rows if r.status == "failed"]
    gate: list[str] = []
    if report.gate is not None:
        gate = [
            f"**INT8 beside FP16: {'passed' if report.gate.passed else 'refused'}**",
            "",
            line(_GATE_HEADINGS),
            line(("---",) * len(_GATE_HEADINGS)),
            *(line(_gate_cells(row)) for row in report.gate.rows),
            "",
            *(f"- {note}" for note in _gate_notes(report.gate)),
            "",
        ]
    return "\n".join(
        [
            f"**{report.summary}**",
            "",
            line(_HEADINGS),
            line(("---",) * len(_HEADINGS)),
            *(line(_cells(row)) for row in report.rows),
            "",
            *([*failures, ""] if failures else []),
            *(f"- *{name}*: {meaning}." for name, meaning in _LEGEND),
            "",
            *gate,
            *(f"- {name}: {value}" for name, value in _facts(report)),
            "",
        ]
    )


def to_console(report: ValidationReport) -> Group:
    """The same for a terminal, the verdict on the first line."""
    table = Table(*_HEADINGS, show_lines=False)
    for row in report.rows:
        table.add_row(*_cells(row))
    failures = [f"{r.runtime}: {r.reason}" for r in report.rows if r.status == "failed"]
    style = "bold green" if report.passed else "bold red"
    gate: list[Table | Text] = []
    if report.gate is not None:
        beside = Table(*_GATE_HEADINGS)
        for candidate in report.gate.rows:
            beside.add_row(*_gate_cells(candidate))
        gate = [beside, *(Text(note) for note in _gate_notes(report.gate))]
    return Group(
        Text(report.summary, style=style),
        table,
        *gate,
        *(Text(f, style="red") for f in failures),
        _dim(_facts(report)),
    )


_MOST_SHOWN = 20
"""Classes that fit into a table."""


def evaluation_to_console(result: Evaluation) -> Group:
    """An evaluation for a terminal, the top-1 on the first line."""
    verdict = Text(
        f"top-1 {result.top1:.2%}: {result.correct} of {result.images} images", style="bold"
    )
    facts = [
        *_model_facts(result),
        ("data", result.data),
        ("time", f"{result.seconds:.1f} s, {result.images / max(result.seconds, 1e-9):.1f} a s"),
    ]
    if result.skipped:
        facts.append(("skipped", f"{len(result.skipped)} that cannot be read"))
    return Group(verdict, _confusion(result), _dim(facts))


def _confusion(result: Evaluation) -> Table | Text:
    if len(result.classes) > _MOST_SHOWN:
        return Text(f"--json has the confusion matrix of the {len(result.classes)} classes")
    table = Table("is / taken for", title="confusion", title_justify="left")
    for name in result.classes:
        table.add_column(Text(name), justify="right")
    for index, (name, row) in enumerate(zip(result.classes, result.confusion, strict=True)):
        cells = [Text(str(n), style="bold" if i == index else "") for i, n in enumerate(row)]
        table.add_row(Text(name), *cells)
    return table


def classification_to_console(result: Classification) -> Group:
    """The classes of a photograph for a terminal, the most probable first."""
    table = Table("class", "output", "probability")
    for c in result.classes:
        table.add_row(Text(c.name), str(c.index), f"{c.probability:.2%}")
    first = Text(f"{result.photograph}: {result.classes[0].name}", style="bold")
    return Group(first, table, _dim(_model_facts(result)))


def _model_facts(result: Evaluation | Classification) -> list[tuple[str, str]]:
    spec = result.model
    return [
        ("model", f"{spec.name}, {spec.height}x{spec.width}, batch {spec.batch}"),
        ("weights", result.weights),
        ("STORM", result.plan),
        ("run by", f"{result.runtime}, {result.precision}"),
        ("versions", ", ".join(f"{v.name} {v.version}" for v in result.versions)),
    ]


def _dim(facts: list[tuple[str, str]]) -> Text:
    return Text("\n".join(f"{name}: {value}" for name, value in facts), style="dim")
