# SPDX-License-Identifier: Apache-2.0
"""Find a pasted message among the symptoms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from stormrt.pipeline.doctor.complaint import GAP, Complaint
from stormrt.pipeline.doctor.complaints import COMPLAINTS

MOST_TEXT = 1 << 20
"""Characters of a log that are read: the last ones, where the errors are."""
_MOST_GAP = 80
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Match:
    """A complaint that a text shows."""

    complaint: Complaint
    symptoms: tuple[str, ...]
    """Those that were found, the longest first."""


def explain(text: str, complaints: Sequence[Complaint] = COMPLAINTS) -> tuple[Match, ...]:
    """Find the complaints that a message, or a whole log, shows.

    Args:
        text: As it was pasted: any case, colours, line breaks.
        complaints: Those to look through.

    Returns:
        The likeliest first: that of the longest symptom, which is the most telling.
    """
    plain = re.sub(r"\s+", " ", _ANSI.sub("", text[-MOST_TEXT:]))
    matches = []
    for complaint in complaints:
        found = [symptom for symptom in complaint.symptoms if _pattern(symptom).search(plain)]
        if found:
            matches.append(Match(complaint, tuple(sorted(found, key=len, reverse=True))))
    return tuple(sorted(matches, key=lambda match: -len(match.symptoms[0])))


def as_text(markdown: str) -> str:
    """A step for a terminal: links of the document written out."""

    def link(found: re.Match[str]) -> str:
        target = found[2] if not found[2].startswith("#") else f"troubleshooting.md{found[2]}"
        return f"{found[1]} (docs/{target})"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, markdown)


@cache
def _pattern(symptom: str) -> re.Pattern[str]:
    # Bounded gaps, so that no text makes the search slow. Messages quote with ' or ".
    parts = [
        re.escape(part.strip()).replace(r"\ ", " ?").replace("'", "['\"]")
        for part in symptom.split(GAP)
    ]
    body = rf".{{0,{_MOST_GAP}}}?".join(parts)
    # "Killed" is a message, "skilled" is not.
    start = r"(?<!\w)" if symptom[0].isalnum() else ""
    end = r"(?!\w)" if symptom in _WHOLE_WORDS else ""
    return re.compile(f"{start}{body}{end}", re.IGNORECASE)


_WHOLE_WORDS = {"Killed", "NaN"}
"""Symptoms so short that they are part of other words."""
