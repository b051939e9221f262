# SPDX-License-Identifier: Apache-2.0
"""``stormrt report``: the reports of a workstation and of devices in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stormrt.pipeline.cli.console import JsonOption, show, show_json


def report_command(
    reports: Annotated[
        list[Path],
        typer.Argument(
            help="report.json of a build, device_report.json of a device, or their folders."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Set builds side by side: runtime, GPU, precision, size, distance from PyTorch, latency.

    What nobody ran reads "not run".
    """
    from stormrt.pipeline.report_merge import merge_files

    merged = merge_files(reports)
    if as_json:
        show_json(merged.to_json_value())
        return
    from stormrt.pipeline.report_tables import merged_to_console

    show(merged_to_console(merged))
