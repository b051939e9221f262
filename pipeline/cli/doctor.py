# SPDX-License-Identifier: Apache-2.0
"""``stormrt doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table

from stormrt.errors import EXIT_ENVIRONMENT
from stormrt.pipeline.cli.console import JsonOption, show, show_json
from stormrt.pipeline.doctor import run_checks


def doctor_command(as_json: JsonOption = False) -> None:
    """Check this machine. Exit code 3 where something of the core is missing."""
    checks = run_checks()
    if as_json:
        show_json([asdict(check) for check in checks])
    else:
        table = Table("for", "what", "status", "found", "needed for", "to mend it")
        for c in checks:
            table.add_row(c.group, c.name, c.status, c.found, c.needed_for, c.mend or "")
        show(table)
    if any(c.group == "core" and c.status == "missing" for c in checks):
        raise typer.Exit(EXIT_ENVIRONMENT)
