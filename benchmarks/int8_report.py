# SPDX-License-Identifier: Apache-2.0
"""What INT8 costs in accuracy, as tables of docs/int8.md and a plot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.operator_bench.tables import NOT_RUN, Content, table

SALT = "stormrt"
COLOURS = {"fp32": "#7f7f7f", "fp16": "#1f77b4", "int8": "#d62728"}


def headline(content: Content | None) -> str:
    """Top-1 of each precision, model and plan, on whole test sets."""
    if content is None:
        return f"Accuracy: {NOT_RUN}."
    rows = [r for r in content["rows"] if r["kind"] == "headline"]
    lines: list[list[object]] = []
    for model, plan in dict.fromkeys((r["model"], r["plan"]) for r in rows):
        found = {r["precision"]: r for r in rows if (r["model"], r["plan"]) == (model, plan)}
        lines.append(
            [
                model,
                plan,
                next(iter(found.values()))["images"],
                *(_top1(found.get(precision)) for precision in COLOURS),
                _lost(found.get("fp32"), found.get("fp16")),
                _lost(found.get("fp32"), found.get("int8")),
                *(_mib(found.get(precision)) for precision in COLOURS),
            ]
        )
    headings = ["model", "STORM", "images", "FP32", "FP16", "INT8", "FP16 loses", "INT8 loses"]
    return table([*headings, "ONNX MiB, FP32", "FP16", "INT8"], lines)


def observers(content: Content | None) -> str:
    """Top-1 by observer, with and without smoothing."""
    if content is None:
        return f"Observers: {NOT_RUN}."
    rows = [r for r in content["rows"] if r["kind"] == "observers"]
    lines: list[list[object]] = []
    for model in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == model]
        plain = {r["precision"]: r for r in own if r["observer"] is None}
        for name in dict.fromkeys(r["observer"] for r in own if r["observer"]):
            of = {r["smoothing"]: r for r in own if r["observer"] == name}
            lines.append(
                [
                    model, name, own[0]["images"], _top1(plain.get("fp32")),
                    _top1(of.get(True)), _lost(plain.get("fp32"), of.get(True)),
                    _top1(of.get(False)), _lost(plain.get("fp32"), of.get(False)),
                ]
            )  # fmt: skip
    headings = ["model", "observer", "images", "FP32", "INT8, smoothed", "loses"]
    return table([*headings, "INT8, not smoothed", "loses"], lines)


def mixed(content: Content | None) -> str:
    """Top-1 of mixed precision beside INT8 alone, on whole test sets."""
    if content is None:
        return f"Mixed precision: {NOT_RUN}."
    rows = content["rows"]
    lines: list[list[object]] = []
    for row in (r for r in rows if r["kind"] == "mixed"):
        plain = {
            r["precision"]: r
            for r in rows
            if r["kind"] == "headline" and (r["model"], r["plan"]) == (row["model"], row["plan"])
        }
        fp32, int8 = plain.get("fp32"), plain.get("int8")
        lines.append(
            [
                row["model"], row["plan"], row["images"], _top1(fp32), _top1(int8),
                _lost(fp32, int8), f"{len(row['kept'])} of {row['layers']}",
                f"{row['error_without']:.4f} -> {row['error']:.4f}", _top1(row), _lost(fp32, row),
                _mib(int8), _mib(row),
            ]
        )  # fmt: skip
    headings = ["model", "STORM", "images", "FP32", "INT8", "loses", "layers in float"]
    headings += ["logits' error, calibration images", "mixed", "loses", "ONNX MiB, INT8", "mixed"]
    return table(headings, lines)


def _top1(row: Content | None) -> str:
    return NOT_RUN if row is None else f"{100 * row['top1']:.2f}"


def _lost(before: Content | None, after: Content | None) -> str:
    if before is None or after is None:
        return NOT_RUN
    return f"{100 * (before['top1'] - after['top1']):.2f}"


def _mib(row: Content | None) -> str:
    return NOT_RUN if row is None else f"{row['onnx_bytes'] / 2**20:.1f}"


def draw(content: Content, target: Path, note: str) -> None:
    """Top-1 of each precision by model and plan."""
    import matplotlib as mpl  # only where a plot is drawn: checks go without

    mpl.use("svg")
    from matplotlib import pyplot as plt

    rows = [r for r in content["rows"] if r["kind"] == "headline"]
    groups = list(dict.fromkeys((r["model"], r["plan"]) for r in rows))
    with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(8.0, 3.4), layout="constrained")
        for offset, (precision, colour) in enumerate(COLOURS.items()):
            heights = [_height(rows, group, precision) for group in groups]
            places = [place + 0.27 * (offset - 1) for place in range(len(groups))]
            bars = axes.bar(places, heights, 0.25, color=colour, label=precision.upper())
            axes.bar_label(bars, [f"{h:.1f}" for h in heights], fontsize=7)
        axes.set_ylim(min(h for g in groups for p in COLOURS if (h := _height(rows, g, p))) - 2, 95)
        axes.set_xticks(range(len(groups)), [f"{model}\n{plan}" for model, plan in groups])
        axes.set_ylabel("top-1, %")
        axes.legend(ncols=3, frameon=False, loc="upper right")
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": note})
        plt.close(figure)


def _height(rows: Iterable[Content], group: tuple[str, str], precision: str) -> float:
    return next(
        (
            100 * float(r["top1"])
            for r in rows
            if (r["model"], r["plan"]) == group and r["precision"] == precision
        ),
        0.0,
    )
