# SPDX-License-Identifier: Apache-2.0
"""Puts benchmarks/results/storm_accuracy.json into docs/storm_results.md: tables and plots.

python benchmarks/render_storm.py           # rewrites the files
python benchmarks/render_storm.py --check   # exit code 1 where a file is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, this would find only what lies beside it

from benchmarks.render_figures import is_stale, render, run  # noqa: E402  # needs the path
from benchmarks.storm_eval import plots, tables  # noqa: E402  # needs the path

RESULTS = ROOT / "benchmarks" / "results" / "storm_accuracy.json"
DOCUMENT = ROOT / "docs" / "storm_results.md"

BLOCKS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("machine", tables.machine),
    ("headline", tables.headline),
    ("collapse", tables.collapse),
    ("figures", partial(tables.figures, files=[file for file, _ in plots.PLOTS])),
    ("large", tables.large),
    ("search", tables.search),
    ("latencies", tables.latencies),
    ("speed", tables.speed),
)
"""Marker, and what makes the text; of None where there are no results yet."""


def read() -> Any:
    """The results; None where there are none."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else None


def stale_blocks(*, write: bool) -> list[str]:
    """Blocks that are out of date."""
    content, stale = read(), []
    for name, block in BLOCKS:
        text = DOCUMENT.read_text()
        rendered = render(text, name, block(content))
        if rendered != text:
            stale.append(f"{DOCUMENT.name}: {name}")
            if write:
                DOCUMENT.write_text(rendered)
    return stale


def stale_plots(*, write: bool, redraw: bool = False) -> list[str]:
    """Plots that were drawn from other results than those there are."""
    if not RESULTS.is_file():
        return []
    return [
        file
        for file, draw in plots.PLOTS
        if is_stale(ROOT / file, RESULTS, draw, write=write, redraw=redraw)
    ]


def main() -> int:
    """Render every block and plot; 1 where ``--check`` finds a difference."""
    return run(__doc__, stale_blocks, stale_plots)


if __name__ == "__main__":
    sys.exit(main())
