# SPDX-License-Identifier: Apache-2.0
"""Reports of devices, and merged ones, for a terminal. Renders, never computes."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from stormrt.pipeline.device.report import Conditions, DeviceReport, EngineResult, Latency, Number
from stormrt.pipeline.report_merge import MergedReport, MergedRow, device_rows

NOT_RUN = "not run"

_HEADINGS = (
    "target",
    "runtime",
    "GPU",
    "precision",
    "MiB",
    "verdict",
    "relative L2",
    "same argmax",
    "top-1",
    "p50",
    "p50 with copies",
)


def merged_to_console(report: MergedReport) -> Group:
    """One table of all reports, and what is the matter with rows that have no number."""
    notes = [f"model: {model}" for model in report.models]
    if len(report.models) > 1:
        notes.append("the reports are of different models: compare rows of one model only")
    return Group(_table(report.rows), *_remarks(report.rows), Text("\n".join(notes), style="dim"))


def device_to_console(report: DeviceReport) -> Group:
    """What was built here, how far it is from PyTorch, and how fast it is."""
    rows = device_rows(report, "")
    details = [line for engine in report.engines for line in _engine_lines(report, engine)]
    return Group(_table(rows), *_remarks(rows), Text("\n".join(details), style="dim"))


def _table(rows: list[MergedRow] | tuple[MergedRow, ...]) -> Table:
    table = Table(*_HEADINGS)
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def _cells(row: MergedRow) -> tuple[str, ...]:
    ran = row.status != NOT_RUN
    return (
        row.target,
        f"{row.runtime} {row.runtime_version or ''}".strip(),
        row.gpu or (NOT_RUN if not ran else "CPU" if row.runtime == "onnxruntime" else "-"),
        row.precision,
        "-" if row.size_bytes is None else f"{row.size_bytes / 2**20:.2f}",
        row.status.upper() if row.status == "failed" else row.status,
        NOT_RUN if row.rel_l2 is None else f"{row.rel_l2:.2e}",
        NOT_RUN if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}",
        "-" if row.top1 is None else f"{row.top1:.2%}",
        NOT_RUN if row.p50_ms is None else f"{row.p50_ms:.3g} ms",
        NOT_RUN if row.call_p50_ms is None else f"{row.call_p50_ms:.3g} ms",
    )


def _remarks(rows: list[MergedRow] | tuple[MergedRow, ...]) -> list[Text]:
    return [
        Text(
            f"{row.runtime} for {row.target}, {row.precision}: {row.status}: {row.reason}",
            style="red" if row.status == "failed" else "",
        )
        for row in rows
        if row.reason
    ]


def _engine_lines(report: DeviceReport, engine: EngineResult) -> list[str]:
    timed = engine.benchmark
    memory = f"recipe {report.recipe_workspace_mib}, free {_number(report.free_memory_mib)}"
    lines = [
        (
            f"{engine.file.name}: built in {engine.build_s:g} s; workspace "
            f"{engine.workspace_mib} MiB ({memory}); timing cache {engine.timing_cache}"
        )
    ]
    if timed.engine is not None and timed.call is not None:
        graph = "CUDA graph" if timed.cuda_graph else timed.reason
        lines += [
            f"  {timed.calls} calls of {timed.batch} after {timed.warm_up}, {graph}",
            f"  engine alone: {_latency(timed.engine)}",
            f"  with copies:  {_latency(timed.call)}",
        ]
        pairs = (("before", timed.before), ("after", timed.after))
        lines += [f"  {when}: {_conditions(c)}" for when, c in pairs if c is not None]
    else:
        lines.append(f"  timing: {NOT_RUN}: {timed.reason}")
    return [*lines, *(f"  warning: {warning}" for warning in engine.warnings)]


def _latency(latency: Latency) -> str:
    return (
        f"p50 {latency.p50_ms:g} ms, p90 {latency.p90_ms:g}, p99 {latency.p99_ms:g}, "
        f"mean {latency.mean_ms:g}"
    )


def _conditions(c: Conditions) -> str:
    locked = "lock unknown"
    if c.gpu_clock_locked != "unknown":
        locked = "locked" if c.gpu_clock_locked else "not locked"
    return (
        f"power mode {c.power_mode}, GPU {_number(c.gpu_clock_mhz)} of "
        f"{_number(c.gpu_clock_most_mhz)} MHz ({locked}), memory "
        f"{_number(c.memory_clock_mhz)} MHz, CPU {_number(c.cpu_clock_mhz)} MHz, "
        f"{_number(c.temperature_c)} degrees C, {_number(c.power_w)} W"
    )


def _number(value: Number) -> str:
    return value if isinstance(value, str) else f"{value:g}"
