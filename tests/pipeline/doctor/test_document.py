# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md is what the complaints say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stormrt.pipeline.doctor import document
from stormrt.pipeline.doctor.complaints import COMPLAINTS


def test_the_document_is_up_to_date() -> None:
    written = document.PATH.read_text(encoding="utf-8")
    assert written == document.render(), f"run {document.COMMAND}"


def test_the_document_has_all_of_every_complaint() -> None:
    text = document.render()
    for complaint in COMPLAINTS:
        assert f'<a id="{complaint.id}"></a>\n## {complaint.title}\n' in text
        assert f"[{complaint.title}](#{complaint.id})" in text
        for part in (*complaint.symptoms, complaint.cause, *complaint.mend, complaint.looks_at):
            assert part in text


def test_links_within_the_document_lead_to_a_complaint() -> None:
    text = document.render()
    anchors = set(re.findall(r'<a id="([^"]+)">', text))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_issues_are_links_and_documents_are_named() -> None:
    assert document.source_link("a/b.c#12") == "[a/b.c#12](https://github.com/a/b.c/issues/12)"
    assert document.source_link("a page: what it says") == "a page: what it says"


def test_a_document_that_is_out_of_date_is_seen_and_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(document, "PATH", tmp_path / "troubleshooting.md")
    assert document.main(["--check"]) == 1
    assert document.main([]) == 0
    assert document.main(["--check"]) == 0
    changed = replace(COMPLAINTS[0], title="Something else")
    assert document.render([changed]) != document.render(COMPLAINTS[:1])


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda c: c.id)
def test_backticks_are_paired(complaint) -> None:
    for text in (complaint.cause, *complaint.mend):
        assert text.count("`") % 2 == 0
