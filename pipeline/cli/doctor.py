# SPDX-License-Identifier: Apache-2.0
"""``stormrt doctor``: what is wrong with a machine, an engine or a message, and what mends it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from stormrt.errors import EXIT_ENVIRONMENT, EXIT_VERDICT, InputError
from stormrt.pipeline.cli.console import JsonOption, note, show, show_json
from stormrt.pipeline.doctor import run_checks

if TYPE_CHECKING:
    from stormrt.pipeline.doctor.examine import Diagnosis

_LOGS = (".log", ".txt")
_OURS = (".plan", ".engine", ".trt", ".onnx")


def doctor_command(
    what: Annotated[
        str | None,
        typer.Argument(
            help="An output folder, an engine, an .onnx file; or an error message, a log of one, "
            "or - to read it. Default: this machine."
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--explain", help="An error message, whatever it looks like."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, or what is wrong with an engine or a message.

    Exit code 3 where something of the core is missing; with a path 1 where there is a problem; with
    a message 1 where none of it is known.
    """
    if message is not None and what is not None:
        raise InputError(
            "a message and something else were given",
            got=f"--explain and {what!r}",
            expected="one of them",
        )
    text = message if message is not None else _message(what)
    if text is not None:
        _explain(text, as_json=as_json)
    elif what is not None:
        _examine(Path(what), as_json=as_json)
    else:
        _machine(as_json=as_json)


def _message(what: str | None) -> str | None:
    """The message that was given, as it is or in a file; None where a path is meant, or nothing."""
    if what is None:
        return None
    if what == "-":
        return sys.stdin.buffer.read().decode(errors="replace")
    path = Path(what)
    try:
        there = path.exists()
    except (OSError, ValueError):
        return what  # too long for a name, or with a zero byte: no path
    if there:
        return _log(path) if path.suffix in _LOGS and path.is_file() else None
    # "build/engine.plan" that is not there is a slip, not a message.
    looks_like_path = " " not in what and ("/" in what or path.suffix in (*_OURS, *_LOGS))
    return None if looks_like_path else what


def _log(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            "the log cannot be read", where=str(path), got=error.strerror or str(error)
        ) from error


def _machine(*, as_json: bool) -> None:
    from stormrt.pipeline.doctor.examine import examine
    from stormrt.pipeline.doctor.facts import gather

    checks = run_checks()
    diagnoses = examine(gather())
    if as_json:
        show_json([*(asdict(check) for check in checks), *(d.to_json() for d in diagnoses)])
    else:
        table = Table("for", "what", "status", "found", "needed for", "to mend it")
        for c in checks:
            cells = (c.group, c.name, c.status, c.found, c.needed_for, c.mend or "")
            table.add_row(*map(escape, cells))
        show(table)
        # What needs an engine to look at is no news of the machine.
        _show([d for d in diagnoses if d.finding.status != "cannot tell"])
        unknown = sum(d.finding.status == "cannot tell" for d in diagnoses)
        note(f"{unknown} more cannot be told here, or need a path: stormrt doctor PATH")
    if any(c.group == "core" and c.status == "missing" for c in checks):
        raise typer.Exit(EXIT_ENVIRONMENT)


def _examine(path: Path, *, as_json: bool) -> None:
    from stormrt.pipeline.doctor.examine import examine
    from stormrt.pipeline.doctor.facts import gather
    from stormrt.pipeline.doctor.subject import read_subject

    diagnoses = examine(gather(read_subject(path)))
    if as_json:
        show_json([d.to_json() for d in diagnoses])
    else:
        _show(diagnoses)
    if any(d.finding.status == "problem" for d in diagnoses):
        raise typer.Exit(EXIT_VERDICT)


def _explain(text: str, *, as_json: bool) -> None:
    from stormrt.pipeline.doctor.examine import examine
    from stormrt.pipeline.doctor.explain import as_text, explain
    from stormrt.pipeline.doctor.facts import gather

    matches = explain(text)
    diagnoses = examine(gather(), [match.complaint for match in matches]) if matches else ()
    if as_json:
        pairs = zip(matches, diagnoses, strict=True)
        show_json([{**d.to_json(), "symptoms": list(m.symptoms)} for m, d in pairs])
    for match, diagnosis in zip(matches, diagnoses, strict=True):
        if as_json:
            break
        complaint, finding = match.complaint, diagnosis.finding
        steps = "\n".join(
            f"  {i}. {as_text(step)}" for i, step in enumerate(complaint.mend, start=1)
        )
        here = f"here: {finding.status}: {finding.found}"
        typer.echo(f"{complaint.title}\n  {complaint.cause}\n{steps}\n  {here}")
        typer.echo(f"  docs/troubleshooting.md#{complaint.id}\n")
    if not matches:
        note("none of this is known; stormrt doctor checks the machine, with a path an engine")
        raise typer.Exit(EXIT_VERDICT)


def _show(diagnoses: list[Diagnosis] | tuple[Diagnosis, ...]) -> None:
    order = ("problem", "ok", "cannot tell")
    table = Table("complaint", "here", "found", "to mend it")
    for d in sorted(diagnoses, key=lambda d: order.index(d.finding.status)):
        cells = (d.complaint.title, d.finding.status, d.finding.found, d.finding.mend or "")
        table.add_row(*map(escape, cells))  # found text may have brackets, as [Errno 2] has
    show(table)
