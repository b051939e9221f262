# SPDX-License-Identifier: Apache-2.0
"""Run the checks of the complaints, whatever they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell
from stormrt.pipeline.doctor.complaints import COMPLAINTS

if TYPE_CHECKING:
    from stormrt.pipeline.doctor.facts import Facts


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A complaint, and what its check saw."""

    complaint: Complaint
    finding: Finding

    def to_json(self) -> dict[str, object]:
        """One entry of ``stormrt doctor --json``, with the keys that the inventory's have."""
        complaint, finding = self.complaint, self.finding
        return {
            "group": "complaint",
            "name": complaint.id,
            "status": finding.status,
            "found": finding.found,
            "needed_for": complaint.spoils,
            "mend": finding.mend,
            "title": complaint.title,
            "cause": complaint.cause,
            "steps": list(complaint.mend),
            "sources": list(complaint.sources),
        }


def examine(facts: Facts, complaints: Sequence[Complaint] = COMPLAINTS) -> tuple[Diagnosis, ...]:
    """Run the checks. One that fails is told as such: it is a broken machine that is looked at."""
    return tuple(Diagnosis(complaint, _run(complaint, facts)) for complaint in complaints)


def _run(complaint: Complaint, facts: Facts) -> Finding:
    try:
        return complaint.check(facts)
    except Exception as error:  # noqa: BLE001 - a broken installation raises what it likes
        return cannot_tell(f"the check itself failed: {type(error).__name__}: {error}")
