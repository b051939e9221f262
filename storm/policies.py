# SPDX-License-Identifier: Apache-2.0
"""Where and how a planner cuts: policies by name."""

from __future__ import annotations

from dataclasses import dataclass

from stormrt.errors import InputError
from stormrt.storm.plan import Mode, Restore, Unit, Weights


@dataclass(frozen=True, slots=True)
class Preference:
    """How a stage's map is cut down, if it is."""

    weight: float
    """The share of lines that a step here keeps is r ** weight, with one r for all steps; 0: no
    steps in this stage."""
    host: str
    mode: Mode
    unit: Unit = "line"
    restore: Restore = "no"
    weights: Weights = "size"
    dt_grows: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Where and how a planner cuts."""

    first: tuple[int, int]
    """Stage and block of the first step; further steps share out what is computed after it."""
    stages: tuple[Preference, Preference, Preference, Preference]
    source: str
    """What it rests on."""
    steps: int = 1
    """How many, unless a user says so."""


_EARLY = (
    "docs/storm_results.md: of what was searched, on both demo models, two steps whose lines are "
    "chosen by dissimilarity and merged lose least on the whole; 1.6 points less than one step on "
    "two seeds that chose nothing, but 1 more for half of the FLOPs of 32 x 32 maps"
)
_PILOT = (
    "a pilot on a 5.2 M VMamba, CIFAR-10 up-sampled to 96 px and scenes at 128 px, one seed: in "
    "stages 0 and 1 lines that differ from their neighbours are worth keeping and merging the "
    "others gains 0 to 5 points; on maps of 8 x 8 and below averaging is as good as any choice"
)
_SCORED = Preference(1.0, "dissimilarity", "merge")
_EVEN = Preference(1.0, "uniform", "merge")
_NEVER = Preference(0.0, "uniform", "merge")

POLICIES: dict[str, Policy] = {
    "early": Policy((0, 1), (_SCORED, _SCORED, _SCORED, _NEVER), _EARLY, steps=2),
    "middle": Policy((1, 1), (_SCORED, _SCORED, _EVEN, _NEVER), _PILOT),
    "late": Policy((2, 1), (_SCORED, _SCORED, _EVEN, _NEVER), _PILOT),
}
"""Policies by name. Early steps make more blocks cheaper, so that fewer lines must leave; late ones
cut maps that have been looked at longer."""

DEFAULT_POLICY = "early"


def policy_of(policy: Policy | str) -> Policy:
    """A policy, or the one of a name.

    Raises:
        InputError: There is none of that name.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise InputError(f"unknown policy {policy!r}", expected=", ".join(POLICIES))
    return POLICIES[policy]
