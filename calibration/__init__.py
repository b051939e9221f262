# SPDX-License-Identifier: Apache-2.0
"""INT8 calibration. Empty until the INT8 work lands; FP32 and FP16 need no calibration."""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.calibration, not calibration: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )
