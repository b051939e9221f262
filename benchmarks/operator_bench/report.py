# SPDX-License-Identifier: Apache-2.0
"""How results are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_INNERMOST = re.compile(r"[\[{]\n[^\[\]{}]*[\]}]")


def write(path: Path, content: Any) -> None:
    """Write results as JSON, each innermost object or list on one line: a diff shows rows."""

    def joined(match: re.Match[str]) -> str:
        return re.sub(r"\s*\n\s*", " ", match[0])

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_INNERMOST.sub(joined, json.dumps(content, indent=2)) + "\n")
