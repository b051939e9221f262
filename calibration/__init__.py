# SPDX-License-Identifier: Apache-2.0
"""INT8 calibration: which images, what is observed of each tensor, and the ranges that follow.

``images`` chooses, ``collect`` runs the exported graph and keeps ``statistics``, ``observers`` turn
those into ranges, ``table`` is the file, ``check`` refuses a table of something else.
"""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.calibration, not calibration: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )
