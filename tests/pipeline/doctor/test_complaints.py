# SPDX-License-Identifier: Apache-2.0
"""What every complaint must say, and that no check ever raises."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import typer.main

from stormrt.pipeline.cli.main import app
from stormrt.pipeline.doctor.complaint import GAP, Complaint, cannot_tell
from stormrt.pipeline.doctor.complaints import COMPLAINTS
from stormrt.pipeline.doctor.examine import examine
from tests.pipeline.doctor.boards import (
    facts,
    machine,
    orin,
)


def test_there_are_more_than_ten_and_each_says_everything_once() -> None:
    assert len(COMPLAINTS) >= 10
    assert len({c.id for c in COMPLAINTS}) == len(COMPLAINTS)
    assert len({c.title for c in COMPLAINTS}) == len(COMPLAINTS)
    for complaint in COMPLAINTS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", complaint.id)
        assert complaint.symptoms
        assert complaint.sources
        assert all(text.endswith(".") for text in (complaint.cause, *complaint.mend)), complaint.id
        assert not complaint.looks_at.endswith(".")


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda c: c.id)
@pytest.mark.parametrize("seen", [facts(), orin()], ids=["t4", "orin"])
def test_nothing_is_wrong_with_a_machine_on_which_nothing_is(complaint: Complaint, seen) -> None:
    (diagnosis,) = examine(seen, [complaint])
    assert diagnosis.finding.status in ("ok", "cannot tell")
    assert "the check itself failed" not in diagnosis.finding.found
    assert diagnosis.finding.mend is None


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda c: c.id)
def test_a_machine_that_tells_nothing_is_no_traceback(complaint: Complaint) -> None:
    empty = facts(machine=machine(None), memory=None, free_disk_mib=None, loading={})
    (diagnosis,) = examine(empty, [complaint])
    assert diagnosis.finding.status == "cannot tell"
    assert "the check itself failed" not in diagnosis.finding.found


def test_a_check_that_fails_is_told_and_the_others_run() -> None:
    def broken(_facts: object):
        raise RuntimeError("what a broken installation raises")

    bad = replace(COMPLAINTS[0], check=broken)
    first, second = examine(facts(), [bad, COMPLAINTS[-1]])
    assert first.finding == cannot_tell(
        "the check itself failed: RuntimeError: what a broken installation raises"
    )
    assert second.finding.status == "ok"


def _known_options(words: list[str]) -> set[str]:
    command = typer.main.get_command(app)
    for word in words:
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            break
        command = inner
    assert not hasattr(command, "commands"), f"stormrt {' '.join(words)} is no command"
    return {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda c: c.id)
def test_commands_of_ours_in_the_mends_exist(complaint: Complaint) -> None:
    for command in re.findall(r"`stormrt ([a-z][^`]*)`", " ".join(complaint.mend)):
        words = command.split()
        options = {w for w in words if w.startswith("--")}
        assert options <= _known_options(words), command


def test_the_check_of_commands_sees_one_that_is_not_there() -> None:
    with pytest.raises(AssertionError):
        _known_options(["heal"])
    assert "--magic" not in _known_options(["build"])


def test_gaps_are_inside_symptoms() -> None:
    for complaint in COMPLAINTS:
        for symptom in complaint.symptoms:
            assert not symptom.startswith(GAP)
            assert not symptom.endswith(GAP)
            assert symptom == symptom.strip()
