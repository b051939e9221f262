# SPDX-License-Identifier: Apache-2.0
"""Templates of files in other languages."""

from __future__ import annotations

import string


class AtTemplate(string.Template):
    """``@{name}`` and nothing else is replaced: shell, C++, CMake and YAML keep their ``$``."""

    delimiter = "@"
    # The groups that string.Template asks for; those that never match are switched off.
    pattern = r"@(?:\{(?P<braced>[a-z0-9_]+)\}|(?P<escaped>(?!))|(?P<named>(?!))|(?P<invalid>(?!)))"  # type: ignore[assignment]  # compiled by the base class
