# SPDX-License-Identifier: Apache-2.0
"""Every fault of the table: one message, its exit code, no traceback, and no half files."""

from __future__ import annotations

import re

import pytest

from tests.hardening.faults import FAULTS, selected
from tests.hardening.render_faults import DOCUMENT, row
from tests.hardening.world import new_world


@pytest.fixture(scope="module")
def world():
    with new_world() as made:
        yield made


@pytest.mark.parametrize("fault", selected(), ids=lambda fault: fault.name)
def test_a_fault_has_one_message_and_its_exit_code(world, fault):
    outcome = world.run(fault.make(world))
    assert outcome.code == fault.code, outcome
    assert "Traceback" not in outcome.err + outcome.out
    for word in fault.words:
        assert word in outcome.err
    if fault.code in (2, 3):
        assert len(re.findall(r"^(?:e|E)rror: ", outcome.err, re.MULTILINE)) == 1, outcome.err
        assert outcome.out == ""
    assert not list(world.folder.rglob(".*.tmp")), "a temporary file was left"
    assert row(fault, outcome, world) in DOCUMENT.read_text(), (
        "docs/faults.md is out of date: python -m tests.hardening.render_faults"
    )


def test_the_page_has_every_fault_and_no_other():
    _, _, tables = DOCUMENT.read_text().partition("## Options")
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    found = [line.split(" | ")[0][2:] for line in lines if line[2:7] not in ("fault", "--- |")]
    wanted = [f"{f.name} ({f.note})" if f.note else f.name for f in FAULTS]
    assert found == wanted
    assert len(set(wanted)) == len(wanted) >= 25


def test_a_fault_that_is_not_one_would_be_noticed(world):
    assert world.run(["targets", "list"]).code == 0
    assert world.run(["targets", "show", "t5"]).code == 2
