# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> the tables of its README: structure and parameters, and where its kernel is.

``python -m stormrt.plugins.derive.readme`` writes them between the markers in each
``plugins/<op>/README.md``; a test fails where that was forgotten.
"""

from __future__ import annotations

import re
from pathlib import Path

from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import PluginSpec, TensorSpec

BEGIN = "<!-- from SPEC: python -m stormrt.plugins.derive.readme -->"
END = "<!-- end -->"

_ROOT = Path(__file__).resolve().parents[1]


def readme_path(spec: PluginSpec) -> Path:
    """Where an operator's README is."""
    return _ROOT / spec.torch_name / "README.md"


def kernel_files(spec: PluginSpec) -> tuple[str, ...]:
    """CUDA files of an operator: its own, and the common ones whose header its plugin includes."""
    folder = readme_path(spec).parent
    own = sorted(path.name for path in folder.glob("*.cu"))
    included = re.findall(r'#include "(common/\w+)\.h"', (folder / "plugin.cpp").read_text())
    shared = [f"../{name}.cu" for name in included if (_ROOT / f"{name}.cu").is_file()]
    return (*own, *shared)


def tables(spec: PluginSpec) -> str:
    """The sections "Structure" and "Parameters", in Markdown."""

    def row(kind: str, tensor: TensorSpec) -> str:
        shape = ", ".join(tensor.shape).replace("*", "·")
        return f"| {kind} | `{tensor.name}` | [{shape}] | {tensor.dtype} | {tensor.doc} |"

    lines = [
        "## Structure",
        "",
        "| | name | shape | type | meaning |",
        "|---|---|---|---|---|",
        *(row("input", t) for t in spec.inputs),
        *(row("output", t) for t in spec.outputs),
        "",
        f"T is {' or '.join(spec.io_dtypes)}, the same for every tensor marked so. "
        + "".join(f"{name} = {value}. " for name, value in spec.constants)
        + "All tensors are contiguous (kLINEAR).",
        "",
        f"In CUDA: {', '.join(f'[`{name}`]({name})' for name in kernel_files(spec))}.",
        "",
        "## Parameters",
        "",
        "| name | type | value | needed |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | string | `{value}` | in a plan; a node may leave it out |"
            for name, value in spec.attributes().items()
        ),
    ]
    return "\n".join(lines)


def with_tables(text: str, spec: PluginSpec) -> str:
    """A README with the tables of a spec between its markers.

    Raises:
        ValueError: It has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme_path(spec)} has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables(spec)}\n\n{END}{after}"


def main() -> None:
    """Write the tables of every operator."""
    for spec in all_plugins().values():
        path = readme_path(spec)
        path.write_text(with_tables(path.read_text(), spec))


if __name__ == "__main__":
    main()
