# SPDX-License-Identifier: Apache-2.0
"""Every source has its licence line, and every relative link of the documentation a target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "benchmarks",
    "calibration",
    "models",
    "pipeline",
    "plugins",
    "runtime",
    "storm",
    "stormrt",
    "targets",
    "tests",
)
SUFFIXES = (".py", ".toml", ".cpp", ".cu", ".h", ".cuh", ".hpp", ".sh", ".cmake")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)")


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                yield path


def lacks_licence(text: str) -> bool:
    """Whether the first line, or the second under a #!, is no SPDX line."""
    lines = text.splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    return not lines or "SPDX-License-Identifier: Apache-2.0" not in lines[0]


def test_every_source_begins_with_its_licence():
    found = list(sources())
    assert len(found) > 60
    assert [str(p.relative_to(ROOT)) for p in found if lacks_licence(p.read_text())] == []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("", True),
        ("import os\n", True),
        ('"""Doc."""\n# SPDX-License-Identifier: Apache-2.0\n', True),
        ("# SPDX-License-Identifier: MIT\n", True),
        ("# SPDX-License-Identifier: Apache-2.0\n", False),
        ("#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n", False),
        ("// SPDX-License-Identifier: Apache-2.0\n", False),
    ],
)
def test_the_check_of_licences_tells_good_from_bad(text, lacks):
    assert lacks_licence(text) is lacks


def documents() -> list[Path]:
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()]


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a Markdown text whose target is not there."""
    # What is in code is not a link.
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:|#", target):
            continue
        if not (path.parent / target.partition("#")[0]).exists():
            broken.append(target)
    return broken


def test_relative_links_of_the_documentation_lead_somewhere():
    found = documents()
    assert found
    broken = {str(p.relative_to(ROOT)): broken_links(p, p.read_text()) for p in found}
    assert {name: links for name, links in broken.items() if links} == {}


def test_the_check_of_links_tells_good_from_bad(tmp_path):
    (tmp_path / "there.md").write_text("")
    good = "[a](there.md) [b](there.md#part) [c](https://x.org/no) [d](#here) `[e](no.md)`"
    assert broken_links(tmp_path / "x.md", good) == []
    bad = "[a](gone.md) ![b](img/gone.png)"
    assert broken_links(tmp_path / "x.md", bad) == ["gone.md", "img/gone.png"]


def test_nothing_names_a_folder_that_is_not_in_the_repository():
    marker = "/work/" + "shared"
    paths = [*sources(), *documents(), ROOT / "pyproject.toml"]
    assert [str(p) for p in paths if marker in p.read_text()] == []
