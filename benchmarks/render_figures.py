# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of benchmarks/results/ into the docs: tables between markers, and plots.

python benchmarks/render_figures.py           # rewrites the files
python benchmarks/render_figures.py --check   # exit code 1 where a file is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, this would find only what lies beside it

from benchmarks import int8_coverage_report, int8_report  # noqa: E402  # needs the path
from benchmarks.operator_bench import plots, tables  # noqa: E402  # needs the path
from benchmarks.operator_bench.tables import table  # noqa: E402  # needs the path

RESULTS = ROOT / "benchmarks" / "results"


def whole_models(content: dict[str, Any]) -> str:
    """Export, build and CPU speed, from ``export_and_build.json``."""
    machine = content["environment"]
    rows = [
        [
            f"{r['model']}, {r['asked']}",
            r["export_seconds"],
            r["native_nodes_fp32"],
            r["onnx_fp32_mib"],
            r["rtx_build_seconds"],
            r["peak_rss_mib"],
            r["eager_ms"],
            r["onnxruntime_ms"],
            r["eager_over_onnxruntime"],
        ]
        for r in content["rows"]
    ]
    headings = ["224 x 224, batch 1", "export s", "native nodes", "ONNX MiB (FP32)"]
    headings += ["TensorRT-RTX build s (FP16, SM 7.5)", "peak RSS MiB", "PyTorch eager ms"]
    headings += ["onnxruntime ms", "ratio"]
    caption = f"{machine['cpus']} CPUs ({machine['cpu']}), FP32 in PyTorch and onnxruntime."
    return f"{table(headings, rows)}\n\n{caption} The engines were not run."


BLOCKS = (
    ("README.md", "whole-models", "export_and_build.json", whole_models),
    ("docs/plugins.md", "scan-kernels", "plugins.json", tables.scan_kernels),
    ("docs/plugins.md", "scan-peers", "plugins.json", tables.scan_peers),
    ("docs/plugins.md", "scan-profile", "profile_scan.json", tables.profile),
    ("docs/plugins.md", "movers", "plugins.json", tables.movers),
    ("docs/plugins.md", "resources", "plugin_resources.json", tables.resources),
    ("docs/plugins.md", "launches", "plugin_resources.json", tables.launches),
    ("docs/plugins.md", "board-estimates", "profile_scan.json", tables.board_estimates),
    ("docs/plugins.md", "gpu-model", "plugins.json", tables.gpu_model),
    ("docs/plugins.md", "checked", "plugins.json", tables.checked),
    ("docs/int8.md", "int8-headline", "int8_accuracy.json", int8_report.headline),
    ("docs/int8.md", "int8-observers", "int8_accuracy.json", int8_report.observers),
    ("docs/int8.md", "int8-mixed", "int8_accuracy.json", int8_report.mixed),
    ("docs/int8.md", "int8-coverage", "int8_coverage.json", int8_coverage_report.coverage),
    ("docs/int8.md", "int8-kept", "int8_coverage.json", int8_coverage_report.kept),
    ("docs/int8.md", "int8-sizes", "int8_coverage.json", int8_coverage_report.sizes),
    ("docs/int8.md", "int8-errors", "int8_coverage.json", int8_coverage_report.errors),
    ("docs/int8.md", "int8-engines", "int8_coverage.json", int8_coverage_report.engines),
)
"""File, marker, results, and what makes the text; of None where there are no results yet."""


PLOTS = (*plots.PLOTS, ("docs/figures/int8.svg", "int8_accuracy.json", int8_report.draw))
"""File, results, and what draws it."""


def render(text: str, name: str, body: str) -> str:
    """Replace what stands between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""
    pattern = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    rendered, count = pattern.subn(lambda m: f"{m[1]}{body}\n{m[2]}", text)
    if count != 1:
        raise SystemExit(f"markers of {name!r}: {count} pairs, expected 1")
    return rendered


def read(name: str) -> Any:
    """The content of a file of results; None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def stale_tables(*, write: bool) -> list[str]:
    """Blocks that are out of date."""
    stale = []
    for file, name, source, block in BLOCKS:
        path = ROOT / file
        text = path.read_text()
        rendered = render(text, name, block(read(source)))
        if rendered != text:
            stale.append(f"{file}: {name}")
            if write:
                path.write_text(rendered)
    return stale


def stale_plots(*, write: bool, redraw: bool = False) -> list[str]:
    """Plots that were drawn from other results than those there are."""
    return [
        file
        for file, source, draw in PLOTS
        if is_stale(ROOT / file, RESULTS / source, draw, write=write, redraw=redraw)
    ]


def is_stale(
    path: Path, results: Path, draw: Callable[[Any, Path, str], None], *, write: bool, redraw: bool
) -> bool:
    """Whether a plot was drawn from other results than those there are; drawn again if asked."""
    content = results.read_bytes()
    note = plots.digest(content)
    if not redraw and path.is_file() and note in path.read_text():
        return False
    if write:
        draw(json.loads(content), path, note)
    return True


def main() -> int:
    """Render every block and plot; 1 where ``--check`` finds a difference."""
    return run(__doc__, stale_tables, stale_plots)


def run(
    doc: str, find_tables: Callable[..., list[str]], find_plots: Callable[..., list[str]]
) -> int:
    """The command line of a script that renders.

    Args:
        doc: The script's.
        find_tables: Names the stale blocks; with ``write`` it mends them.
        find_plots: The same for plots; with ``redraw`` all are stale.

    Returns:
        1 where ``--check`` finds a difference.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--redraw", action="store_true", help="draw every plot again")
    options = parser.parse_args()
    stale = find_tables(write=not options.check)
    stale += find_plots(write=not options.check, redraw=options.redraw)
    failed = options.check and bool(stale)
    print("out of date: " + ", ".join(stale) if failed else f"changed: {len(stale)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
