# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/storm_results.md, as Markdown, from benchmarks/results/storm_accuracy.json.

Each function takes the file's content, or None where there is none; what was not run reads so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.operator_bench.tables import NOT_RUN, table
from stormrt.storm.planner import plan_for_flops
from stormrt.storm.variants import get_variant

Content = Mapping[str, Any]
Row = Mapping[str, Any]

COLUMNS = (
    ("tokens, MTR's score", "tokens:step_size"),
    ("tokens, ToP-ViM's", "tokens:clipped_output"),
    ("tokens, norm", "tokens:feature_norm"),
    ("tokens, dissimilarity", "tokens:dissimilarity"),
    ("ToMe, repacked", "matching"),
    ("lines, random", "lines:random:drop"),
    ("lines, step size", "lines:step_size:drop"),
    ("lines, dissimilarity", "lines:dissimilarity:drop"),
    ("merged", "lines:dissimilarity:merge"),
    ("merged by distance", "lines:dissimilarity:merge by distance"),
    ("steps grow", "lines:dissimilarity:merge, steps grow"),
    ("even lines merged", "lines:uniform:merge"),
    ("windows, dissimilarity, merged", "windows:dissimilarity:merge"),
    ("stride", "stride"),
    ("average pooling", "average"),
    ("bilinear", "bilinear"),
    ("scan only", "scan only"),
    ("smaller input", "smaller input:bicubic"),
)
"""Heading and method of the large table."""
AGNOSTIC = ("tokens:", "matching")
SIMPLE = ("stride", "average", "bilinear", "scan only", "smaller input")
"""How the methods of the two kinds of baselines begin."""
FOUND = 6
"""Rows of a search that are shown."""


def models(content: Content) -> list[str]:
    """Models with accuracies, in the order of the results."""
    return list(dict.fromkeys(row["model"] for row in content["accuracy"]))


def first_rows(content: Content, model: str) -> list[Row]:
    """Rows of a model's first checkpoint: the one that has all of them."""
    own = [row for row in content["accuracy"] if row["model"] == model]
    return [row for row in own if row["checkpoint"] == own[0]["checkpoint"]]


def index(rows: Iterable[Row]) -> dict[tuple[str, str, float | None], Row]:
    """Rows by method, where and keep."""
    return {(row["method"], row["where"], row["keep"]): row for row in rows}


def points(top1: float) -> str:
    """A share in per cent, as accuracies are given."""
    return f"{100 * top1:.1f}"


def across_seeds(content: Content, model: str, row: Row) -> str:
    """A row's top-1: of one checkpoint, or the mean and the range of several."""
    found = [
        other["top1"]
        for other in content["accuracy"]
        if other["model"] == model
        and all(other[key] == row[key] for key in ("method", "where", "keep"))
    ]
    if len(found) == 1:
        return points(found[0])
    mean = statistics.mean(found)
    return f"{points(mean)} ({points(min(found))} to {points(max(found))})"


def machine(content: Content | None) -> str:
    """What ran on what."""
    if content is None:
        return f"`python -m benchmarks.storm_accuracy`: {NOT_RUN}."
    where = content["environment"]
    lines = []
    for model in models(content):
        own = [row for row in content["accuracy"] if row["model"] == model]
        seeds = list(dict.fromkeys(row["seed"] for row in own))
        names = ", ".join("none (untrained)" if s is None else str(s) for s in seeds)
        lines.append(f"`{model}`: {own[0]['images']} test images, training seed {names}.")
    return (
        f"{where['device']}, PyTorch {where['torch']}, {where['precision'].upper()}. "
        + " ".join(lines)
    )


def _planners(model: str, share: float, row: Row) -> str:
    """What a row of the planner is called: it may have been measured with an earlier default."""
    variant = get_variant(model)
    choice = plan_for_flops(variant, variant.image, variant.image, share)
    if choice.plan.describe() == row["plan"]:
        return "the planner's choice"
    return f"the planner's choice with an earlier default: {row['plan']}"


def headline(content: Content | None) -> str:
    """At each budget: the planner's choice, and the best of either kind of baselines."""
    if content is None:
        return f"Accuracy: {NOT_RUN}."
    rows: list[list[object]] = []
    for model in models(content):
        own = first_rows(content, model)
        by_name = index(own)
        dense = by_name.get(("dense", "dense", None))
        if dense is not None:
            rows.append([model, "dense", "100%", across_seeds(content, model, dense), "", ""])
        for share in sorted({r["keep"] for r in own if r["method"] == "planner"}, reverse=True):
            label = f"flops={share:g}"
            at_budget = [r for r in own if r["where"].split(" ")[0] == label]
            chosen = by_name["planner", label, share]
            shown = [(_planners(model, share, chosen), chosen)]
            for name, kind in (("best without structure", AGNOSTIC), ("best simple", SIMPLE)):
                # What saves less than was asked for is no answer to the question.
                fitting = [
                    r for r in at_budget
                    if r["method"].startswith(kind) and r["flops_share"] <= share
                ]  # fmt: skip
                if fitting:
                    best = max(fitting, key=lambda r: r["top1"])
                    where = best["where"].removeprefix(label).strip()
                    shown.append((f"{name}: {best['method']} {where}".strip(), best))
            found = [r for r in at_budget if r["method"].startswith("planner (")]
            if found:
                best = max(found, key=lambda r: r["top1"])
                shown.append((f"best of the search: {best['method'][9:-1]}", best))
            for name, row in shown:
                lost = None if dense is None else dense["top1"] - row["top1"]
                ahead = chosen["top1"] - row["top1"]
                rows.append(
                    [
                        f"{model} at {share:.0%}",
                        name,
                        f"{row['flops_share']:.1%}",
                        across_seeds(content, model, row),
                        "" if lost is None else points(lost),
                        "" if row is chosen else f"{100 * ahead:+.1f}",
                    ]
                )
    headings = ["model and budget", "method", "FLOPs", "top-1", "below dense", "planner ahead by"]
    return table(headings, rows)


def large(content: Content | None) -> str:
    """Every method of the columns at every place and share, one table a model."""
    if content is None:
        return f"The table: {NOT_RUN}."
    parts = []
    for model in models(content):
        own = first_rows(content, model)
        by_name = index(own)
        places = list(
            dict.fromkeys(
                (r["where"], r["keep"])
                for r in sorted(own, key=lambda r: (r["where"], -(r["keep"] or 0)))
                if r["where"].startswith("s") and " " not in r["where"]
            )
        )
        rows: list[list[object]] = []
        for where, keep in places:
            some = by_name.get(("stride", where, keep))
            grid = "x".join(map(str, some["grid"])) if some else ""
            share = f"{some['flops_share']:.0%}" if some else ""
            line: list[object] = [f"{where} to {grid}", f"{keep:g}", share]
            cells = [by_name.get((method, where, keep)) for _, method in COLUMNS]
            best = max((r["top1"] for r in cells if r), default=0.0)
            for row in cells:
                text = NOT_RUN if row is None else points(row["top1"])
                line.append(f"**{text}**" if row and row["top1"] == best else text)
            rows.append(line)
        headings = ["where", "keep", "FLOPs", *(name for name, _ in COLUMNS)]
        dense = by_name.get(("dense", "dense", None))
        title = f"`{model}`, dense {points(dense['top1']) if dense else NOT_RUN}:"
        parts.append(f"{title}\n\n{table(headings, rows)}")
    return "\n\n".join(parts) or f"The table: {NOT_RUN}."


def collapse(content: Content | None) -> str:
    """Where dropping tokens without structure breaks most, and what lines do there."""
    if content is None:
        return f"The collapse: {NOT_RUN}."
    rows: list[list[object]] = []
    for model in models(content):
        own = [r for r in first_rows(content, model) if " " not in r["where"]]
        groups: dict[tuple[str, float], list[Row]] = {}
        for row in own:
            if row["where"].startswith("s"):
                groups.setdefault((row["where"], row["keep"]), []).append(row)
        gaps = []
        for (where, keep), together in groups.items():
            lines = [r for r in together if r["method"].startswith(("lines:", "windows:"))]
            other = [r for r in together if r["method"].startswith(AGNOSTIC)]
            if lines and other:
                best = [max(part, key=lambda r: r["top1"]) for part in (lines, other)]
                gaps.append((best[0]["top1"] - best[1]["top1"], where, keep, *best))
        for gap, where, keep, ours, theirs in sorted(gaps, key=lambda g: -g[0])[:3]:
            rows.append(
                [
                    model, where, f"{keep:g}", f"{ours['method']}: {points(ours['top1'])}",
                    f"{theirs['method']}: {points(theirs['top1'])}", points(gap),
                ]
            )  # fmt: skip
    headings = ["model", "where", "keep", "best units", "best without structure", "points between"]
    return table(headings, rows)


def search(content: Content | None) -> str:
    """The best of what the planner could do, for each budget."""
    if content is None:
        return f"The search: {NOT_RUN}."
    rows: list[list[object]] = []
    for model in models(content):
        own = [r for r in first_rows(content, model) if r["method"].startswith("planner (")]
        for share in sorted({r["keep"] for r in own}, reverse=True):
            found = sorted((r for r in own if r["keep"] == share), key=lambda r: -r["top1"])
            rows += [
                [model, f"{share:g}", r["method"][9:-1], f"{r['flops_share']:.1%}",
                 points(r["top1"]), r["plan"]]
                for r in found[:FOUND]
            ]  # fmt: skip
    if not rows:
        return f"The search: {NOT_RUN}."
    return table(["model", "budget", "first place, steps, method", "FLOPs", "top-1", "plan"], rows)


def latencies(content: Content | None) -> str:
    """Measured times of the demo models' rows, next to the FLOPs."""
    if content is None:
        return f"Latency: {NOT_RUN}."
    rows: list[list[object]] = []
    timed = [*content["latency"], *content["latency_baselines"]]
    accurate = {(r["model"], r["method"], r["where"], r["keep"]): r for r in content["accuracy"]}
    names = dict.fromkeys(
        (r["model"], r["method"], r["where"], r["keep"]) for r in timed if "dense_ms" in r
    )
    for name in names:
        by_batch = {
            r["batch"]: r
            for r in timed
            if (r["model"], r["method"], r["where"], r["keep"]) == name and "dense_ms" in r
        }
        some = next(iter(by_batch.values()))
        line: list[object] = [name[0], name[1], name[2], "" if name[3] is None else f"{name[3]:g}"]
        line.append(f"{some['flops_share']:.0%}")
        for batch in (1, 64):
            row = by_batch.get(batch)
            if row is None:
                line += [NOT_RUN, NOT_RUN]
            else:
                line += [f"{row['ms']:.3f}", f"{row['ms'] / row['dense_ms']:.0%}"]
        known = accurate.get(name)
        line.append(points(known["top1"]) if known else NOT_RUN)
        rows.append(line)
    if not rows:
        return f"Latency: {NOT_RUN}."
    headings = ["model", "method", "where", "keep", "FLOPs", "batch 1, ms", "of dense"]
    headings += ["batch 64, ms", "of dense", "top-1"]
    return table(headings, rows)


def speed(content: Content | None) -> str:
    """VMamba-T: the gain in latency next to the gain in FLOPs, and what the time goes to."""
    rows = [] if content is None else [r for r in content["latency"] if "kernels" in r]
    if not rows:
        return f"VMamba-T at 224 and 512: {NOT_RUN}."
    dense = {(r["size"][0], r["batch"]): r for r in rows if r["method"] == "dense"}
    kinds = list(dict.fromkeys(kind for r in rows for kind in r["ms_by_kind"]))
    lines: list[list[object]] = []
    for r in rows:
        base = dense[r["size"][0], r["batch"]]
        lines.append(
            [
                r["size"][0], r["batch"], r["where"], f"{r['flops_share']:.0%}", f"{r['ms']:.3f}",
                f"{r['ms'] / base['ms']:.0%}", r["kernels"], f"{r['kernel_ms']:.3f}",
                *(f"{r['ms_by_kind'].get(kind, 0.0):.3f}" for kind in kinds),
            ]
        )  # fmt: skip
    headings = ["side", "batch", "plan", "FLOPs", "ms", "of dense", "kernels", "in kernels, ms"]
    return table([*headings, *kinds], lines)


def figures(content: Content | None, files: Sequence[str]) -> str:
    """Links to the plots, once there are any."""
    if content is None:
        return f"Plots: {NOT_RUN}."
    titles = ("Top-1 against FLOPs", "Top-1 against measured latency")
    return "\n\n".join(
        f"![{title}]({file.removeprefix('docs/')})"
        for title, file in zip(titles, files, strict=True)
    )
