# SPDX-License-Identifier: Apache-2.0
"""Tries every fault and writes docs/faults.md: ``python -m tests.hardening.render_faults``."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

from tests.hardening.faults import FAULTS, Fault, selected
from tests.hardening.world import Outcome, World, new_world

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
RESULTS = ROOT / "benchmarks" / "results"

_HEAD = """\
# What can go wrong

{count} faults, each made for real and met through the command line by
`tests/hardening/test_faults.py`, with their messages and exit codes. This page is written by
`python -m tests.hardening.render_faults`; a test compares it with what the commands say.

Exit codes: 0 fine, 1 a verdict failed, 2 bad usage or input, 3 something is missing, 130 Ctrl-C,
143 SIGTERM. A message is one text on stderr (with `--json` an object on stdout) that also says
where, what was got and what was expected. None is a traceback. What an earlier build had made stays
as it was.

| tried by | what | result |
| --- | --- | --- |
| `tests/hardening/kills.py` | {kills} | [kills.json](../benchmarks/results/kills.json) |
| `tests/hardening/fuzz.py` | {fuzz} | [fuzz.json](../benchmarks/results/fuzz.json) |
| `tests/hardening/coverage_fuzz.py` | {coverage} | \
[coverage_fuzz.json](../benchmarks/results/coverage_fuzz.json) |

`STORMRT_KILLS=50` and `STORMRT_FUZZ_CASES=10000` make the tests run all; CI runs a sample.
"""


def row(fault: Fault, outcome: Outcome, world: World) -> str:
    """A fault's line in the table."""
    name = f"{fault.name} ({fault.note})" if fault.note else fault.name
    fields = dict(re.findall(r"^  (where|got|expected|fix): +(.*)", outcome.err, re.MULTILINE))
    said = re.search(r"^error: (.*)", outcome.err, re.MULTILINE)
    message = "-"
    if said is not None:
        telling = [
            f"; *{label}*: {fields[label]}"
            for label in ("where", "got", "expected")
            # Only what the test asks for: libraries put what they have to say here, too.
            if any(word in fields.get(label, "") for word in fault.words)
        ]
        fix = f"; *fix*: {fields['fix']}" if "fix" in fields else ""
        message = "".join((said[1], *telling, fix))
    elif outcome.code == 2:
        message = "the option parser's own message, with the usage"
    # Neither this machine's folders nor the versions of its packages.
    message = re.sub(rf"{re.escape(str(world.folder))}(/\d+)?/?", "", message)
    message = re.sub(r"\b\d+\.\d+\.\d+(\.\d+)*", "N", message)
    return f"| {name} | {outcome.code} | {message.replace('|', chr(92) + '|')} |"


def _kills() -> str:
    found = json.loads((RESULTS / "kills.json").read_text())
    full = found["full_disks"]
    disks = f"{len(full)} disks that were too small" if isinstance(full, list) else "no full disks"
    return (
        f"{len(found['kills'])} builds killed at random moments, {len(found['signals'])} by Ctrl-C "
        f"or SIGTERM, no space for each of {len(found['no_space_for_a_file'])} files, {disks}, two "
        "builds into one folder: all recovered, same bytes"
    )


def _fuzz() -> str:
    found = json.loads((RESULTS / "fuzz.json").read_text())
    return (
        f"{found['cases']:,} damaged files for {len(found['readers'])} readers: "
        f"{found['failures']} failures, at most {found['peak_mib']} MiB"
    )


def _coverage() -> str:
    found = json.loads((RESULTS / "coverage_fuzz.json").read_text())
    return (
        f"{found['executed']:,} inputs that atheris made to reach new code, for "
        f"{len(found['readers'])} readers of text and archives: {found['failures']} failures"
    )


def document(rows: dict[str, str]) -> str:
    """The page, from the rows by the faults' names."""
    told = {"kills": _kills(), "fuzz": _fuzz(), "coverage": _coverage()}
    parts = [_HEAD.format(count=len(rows), **told)]
    for part, faults in itertools.groupby(FAULTS, key=lambda f: f.part):
        lines = [rows[f.name] for f in faults]
        head = "| fault | exit code | message |\n| --- | --- | --- |\n"
        parts.append(f"## {part}\n\n{head}" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page."""
    if len(selected()) < len(FAULTS):
        sys.stderr.write("some faults need TensorRT-RTX, which is not installed\n")
        return 3
    with new_world() as world:
        rows = {f.name: row(f, world.run(f.make(world)), world) for f in FAULTS}
    DOCUMENT.write_text(document(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
