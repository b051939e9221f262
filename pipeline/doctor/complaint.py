# SPDX-License-Identifier: Apache-2.0
"""The one declaration of a complaint, from which the command and the document are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stormrt.pipeline.doctor.facts import Facts

Status = Literal["ok", "problem", "cannot tell"]

GAP = "..."
"""In a symptom: some words that differ from case to case."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw here."""

    status: Status
    found: str
    """What was seen; for ``cannot tell`` what would have to be known."""
    mend: str | None = None
    """What to type, where one command mends it."""


def ok(found: str) -> Finding:
    """The complaint does not apply."""
    return Finding("ok", found)


def problem(found: str, mend: str | None = None) -> Finding:
    """The complaint applies."""
    return Finding("problem", found, mend)


def cannot_tell(reason: str) -> Finding:
    """It cannot be told here."""
    return Finding("cannot tell", reason)


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that goes wrong with TensorRT, often."""

    id: str
    """Its name in JSON and in the document's links."""
    title: str
    """What its users say."""
    spoils: str
    """What it keeps from working."""
    symptoms: tuple[str, ...]
    """Pieces of messages as they are pasted; `GAP` stands for a few words."""
    cause: str
    mend: tuple[str, ...]
    """Steps, the first to try first. Markdown."""
    looks_at: str
    """What the check compares."""
    check: Callable[[Facts], Finding]
    """Looks at facts and nothing else. What it raises is told, not passed on (``examine``)."""
    sources: tuple[str, ...]
    """Issues as ``owner/repository#number``, or documents by name."""


NO_SUBJECT = "name a folder, an engine or a graph: stormrt doctor PATH"
"""Why a check about engines says nothing on a bare machine."""
