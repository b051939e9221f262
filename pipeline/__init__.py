# SPDX-License-Identifier: Apache-2.0
"""The stages that turn a VMamba checkpoint into a validated engine, and the command line."""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.pipeline, not pipeline: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )
