# SPDX-License-Identifier: Apache-2.0
"""Every operator's README has the sections that all have, and the tables that its SPEC says."""

from __future__ import annotations

import pytest

from stormrt.plugins.derive.readme import kernel_files, readme_path, with_tables
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.selective_scan_2d import SPEC
from stormrt.plugins.spec import PluginSpec

SECTIONS = ("Description", "Structure", "Parameters", "Changelog", "Known issues")


@pytest.mark.parametrize("spec", all_plugins().values(), ids=lambda spec: spec.name)
def test_the_readme_is_complete_and_up_to_date(spec: PluginSpec):
    text = readme_path(spec).read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == list(SECTIONS)
    assert f"# {spec.name}\n" in text
    assert f"\n- {spec.version}: " in text
    assert with_tables(text, spec) == text, "run python -m stormrt.plugins.derive.readme"


def test_kernels_are_named_wherever_they_lie():
    files = {spec.name: kernel_files(spec) for spec in all_plugins().values()}
    assert files == {
        "SelectiveScan2D": ("banded.cu", "kernel.cu", "staged.cu"),
        "SpatialUnitGather": ("../common/line_copy.cu",),
        "SpatialUnitMerge": ("kernel.cu",),
        "SpatialUnitScatter": ("../common/line_copy.cu",),
    }


def test_a_readme_without_markers_is_told():
    with pytest.raises(ValueError, match="has no lines"):
        with_tables("# SelectiveScan2D\n", SPEC)
