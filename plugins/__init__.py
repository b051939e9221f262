# SPDX-License-Identifier: Apache-2.0
"""Custom operators, one folder each: declared once in SPEC, everything else derived from it."""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.plugins, not plugins: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )
