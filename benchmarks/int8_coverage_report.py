# SPDX-License-Identifier: Apache-2.0
"""What INT8 covers in published VMambas, as tables of docs/int8.md."""

from __future__ import annotations

import statistics
from collections import Counter

from benchmarks.operator_bench.tables import NOT_RUN, Content, table

_MIB = 2**20


def coverage(content: Content | None) -> str:
    """How many Conv, Gemm and MatMul carry Q/DQ."""
    lines: list[list[object]] = []
    for row in _rows(content):
        ops = Counter(layer["op"] for layer in row["layers"])
        carrying = sum(layer["quantised"] for layer in row["layers"])
        unexplained = [n for n in row["layers"] if not n["quantised"] and not n["reason"]]
        counts = [ops[op] for op in ("Conv", "Gemm", "MatMul")]
        kept = len(row["layers"]) - carrying
        lines.append([_name(row), *counts, carrying, kept, len(unexplained)])
    headings = ["model", "Conv", "Gemm", "MatMul", "carry Q/DQ", "in float by the policy"]
    return _table([*headings, "in float without a reason"], lines)


def kept(content: Content | None) -> str:
    """Why the others do not."""
    lines: list[list[object]] = []
    for row in _rows(content):
        reasons = Counter(n["reason"] for n in row["layers"] if not n["quantised"])
        lines += [[_name(row), count, reason] for reason, count in reasons.most_common()]
    return _table(["model", "nodes in float", "reason"], lines)


def sizes(content: Content | None) -> str:
    """Files of INT8 beside those of FP16."""
    lines: list[list[object]] = []
    for row in _rows(content):
        graphs, engines = row["onnx_bytes"], row["engines"]
        line: list[object] = [_name(row), *(_mib(graphs[p]) for p in ("fp32", "fp16", "int8"))]
        for sm in ("SM 7.5", "SM 8.6"):
            line += [_mib(engines.get(sm, {}).get(p, {}).get("bytes")) for p in ("fp16", "int8")]
        lines.append(line)
    headings = ["model", "ONNX MiB, FP32", "FP16", "INT8", "engine MiB, SM 7.5, FP16", "INT8"]
    return _table([*headings, "SM 8.6, FP16", "INT8"], lines)


def errors(content: Content | None) -> str:
    """What rounding does to single tensors, and what becomes of it at the outputs."""
    lines: list[list[object]] = []
    for row in _rows(content):
        found = [_name(row)]
        for what in ("activation_error", "weight_error"):
            by_layer = {n["name"]: n[what] for n in row["layers"] if what in n}
            worst = max(by_layer, key=lambda name: by_layer[name])
            median = statistics.median(by_layer.values())
            found += [_percent(median), f"{_percent(by_layer[worst])} at {worst}"]
        blocks = row["blocks"]["int8"]
        inner = {name: error for name, error in blocks.items() if name != "logits"}
        worst = max(inner, key=lambda name: inner[name])
        found += [f"{_percent(inner[worst])} at {worst}", _percent(blocks["logits"])]
        lines.append([*found])
    headings = ["model", "activations, median", "worst", "weights, median", "worst"]
    return _table([*headings, "a module's output, worst", "logits"], lines)


def engines(content: Content | None) -> str:
    """In which type engines multiply."""
    lines: list[list[object]] = []
    for row in _rows(content):
        if not row["engines"]:
            lines.append([_name(row), NOT_RUN, "", "", "", ""])
        for sm, found in row["engines"].items():
            for precision, engine in found.items():
                types = ", ".join(f"{n} {kind}" for kind, n in engine["types"].items())
                kernels, seconds = engine["kernels"], engine["seconds"]
                lines.append([_name(row), sm, precision.upper(), types, kernels, seconds])
    headings = ["model", "GPU", "graph", "Conv, Gemm and MatMul read", "kernels", "build s"]
    return _table(headings, lines)


def _rows(content: Content | None) -> list[Content]:
    return [] if content is None else content["rows"]


def _table(headings: list[str], lines: list[list[object]]) -> str:
    return table(headings, lines) if lines else f"{headings[-1]}: {NOT_RUN}."


def _name(row: Content) -> str:
    height, width = row["size"]
    return f"{row['model']}, {height} x {width}"


def _mib(size: int | None) -> str:
    return NOT_RUN if size is None else f"{size / _MIB:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
