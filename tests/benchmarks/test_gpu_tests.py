# SPDX-License-Identifier: Apache-2.0
"""The record of GPU tests tells what passed, failed and was skipped, and why."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.gpu_tests import EXPECTED, Recorder

TESTS = """
import pytest

def test_passes(): assert True
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason="no such GPU")
def test_is_skipped(): raise AssertionError
@pytest.mark.xfail(reason="known", strict=True)
def test_fails_as_known(): assert 1 == 2
@pytest.fixture
def broken():
    yield
    raise OSError("not given back")
def test_leaves_something(broken): assert True
"""


def test_every_outcome_is_recorded_with_its_reason(tmp_path, monkeypatch, capfd):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", f"--rootdir={tmp_path}"]
    code = pytest.main([*options, str(tmp_path)], plugins=[recorder])
    capfd.readouterr()
    assert code != 0
    rows = {name.split("::")[-1]: row for name, row in recorder.tests.items()}
    assert rows["test_passes"]["outcome"] == "passed"
    assert "why" not in rows["test_passes"]
    assert "assert 1 == 2" in rows["test_fails"]["why"]
    assert rows["test_is_skipped"]["why"] == "no such GPU"
    assert rows["test_fails_as_known"] == {
        "test": rows["test_fails_as_known"]["test"],
        "outcome": EXPECTED,
        "why": "known",
    }
    assert "not given back" in rows["test_leaves_something"]["why"]
    assert "no_such_module" in rows["test_broken.py"]["why"]
    assert recorder.counts() == {"passed": 1, "failed": 3, EXPECTED: 1, "skipped": 1}
