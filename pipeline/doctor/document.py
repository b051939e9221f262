# SPDX-License-Identifier: Apache-2.0
"""The complaints -> docs/troubleshooting.md.

``python -m stormrt.pipeline.doctor.document`` writes it, ``--check`` says whether it is up to date;
a test fails where that was forgotten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stormrt.pipeline.doctor.complaint import Complaint
from stormrt.pipeline.doctor.complaints import COMPLAINTS

PATH = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
COMMAND = "python -m stormrt.pipeline.doctor.document"

_ISSUE = re.compile(r"([\w.-]+/[\w.-]+)#(\d+)")

_HEAD = f"""\
<!-- Written by {COMMAND} from pipeline/doctor/complaints/. -->
# When it does not work

    stormrt doctor                          # this machine: what is missing, what is wrong
    stormrt doctor build/                   # an output folder, an engine or an .onnx file, here
    stormrt doctor 'Version tag does not match ...'     # a message, as it was printed
    stormrt doctor build.log                # a whole log; - reads from a pipe

Each entry is a check of `stormrt doctor`: ok, problem, or cannot tell here. Checks change nothing,
and a TensorRT that does not load is told, not run into. `--json` has the same for programs. With a
path the exit code is 1 where there is a problem; with a message, 1 where none of it is known.

The messages are TensorRT's, its hosts' and ours, as their users paste them; `...` stands for a few
words. The mends follow the sources and NVIDIA's documents. **On a Jetson or a T4 nobody ran them
for this project.**

"""


def render(complaints: Sequence[Complaint] = COMPLAINTS) -> str:
    """The document."""
    rows = [f"- [{c.title}](#{c.id})" for c in complaints]
    return _HEAD + "\n".join(rows) + "\n\n" + "\n".join(map(_section, complaints))


def _section(complaint: Complaint) -> str:
    steps = [f"{number}. {step}" for number, step in enumerate(complaint.mend, start=1)]
    lines = [
        f'<a id="{complaint.id}"></a>',
        f"## {complaint.title}",
        "",
        *(f"    {symptom}" for symptom in complaint.symptoms),
        "",
        f"**Why.** {complaint.cause}",
        "",
        *steps,
        "",
        f"**Checked** (`{complaint.id}`): {complaint.looks_at}.",
        "",
        f"Sources: {'; '.join(map(source_link, complaint.sources))}.",
    ]
    return "\n".join(lines) + "\n"


def source_link(source: str) -> str:
    """A source in Markdown; an issue as a link.

    Example:
        >>> source_link("NVIDIA/TensorRT#1913")
        '[NVIDIA/TensorRT#1913](https://github.com/NVIDIA/TensorRT/issues/1913)'
    """
    found = _ISSUE.fullmatch(source)
    return f"[{source}](https://github.com/{found[1]}/issues/{found[2]})" if found else source


def main(arguments: Sequence[str]) -> int:
    """Write the document, or with ``--check`` return 1 where it is out of date."""
    text = render()
    fresh = PATH.is_file() and PATH.read_text(encoding="utf-8") == text
    if "--check" in arguments:
        return int(not fresh)
    if not fresh:
        PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
