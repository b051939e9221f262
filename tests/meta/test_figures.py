# SPDX-License-Identifier: Apache-2.0
"""Figures in the docs are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "render_figures.py"


def test_the_docs_hold_the_figures_of_the_committed_results():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_block_without_markers_is_refused():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import render_figures
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert render_figures.render("<!-- a:begin -->\nold\n<!-- a:end -->", "a", "new").count("new")
    with pytest.raises(SystemExit, match="0 pairs"):
        render_figures.render("no markers", "a", "new")
