# SPDX-License-Identifier: Apache-2.0
"""TensorRT or JetPack is too old for the plugins."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts
from stormrt.pipeline.doctor.versions import numbers

_LEAST = (10, 3)
_LEAST_L4T = (36, 4)
"""JetPack 6.1, the first with TensorRT 10.3."""


def _check(facts: Facts) -> Finding:
    board, version = facts.machine.jetson, facts.version()
    l4t = numbers(board.l4t) if board else ()
    if board is not None and l4t and l4t < _LEAST_L4T:
        return problem(
            f"JetPack {board.jetpack}, L4T {board.l4t}: its TensorRT is 8.x, without IPluginV3",
            "flash JetPack 6.2 or later",
        )
    if version is None:
        return cannot_tell("TensorRT does not load here")
    told = f"TensorRT {'.'.join(map(str, version))}"
    if version[:2] < _LEAST:
        return problem(f"{told}; 10.3 or later is needed", "stormrt targets check")
    return ok(told)


COMPLAINT = Complaint(
    id="tensorrt-too-old",
    title="JetPack or TensorRT is too old",
    spoils="building engines",
    symptoms=(
        "IPluginV3' does not name a type",
        "IPluginCreatorInterface' does not name a type",
        "IPluginCreatorV3One' does not name a type",
        "IPluginV3' was not declared",
        "this TensorRT is not supported",
    ),
    cause="The plugins are IPluginV3, which TensorRT has since 10. JetPack 5.1 has 8.5 and JetPack "
    "6.0 has 8.6; JetPack 6.1 is the first with 10.3.",
    mend=(
        (
            "Flash JetPack 6.2, or 7.2, on any Orin. TensorRT alone cannot be updated past what "
            "JetPack's driver supports."
        ),
        "On x86: `python -m pip install 'tensorrt>=10.3,<12'`.",
        (
            "Without plugins the native graph holds standard operators only "
            "(`stormrt export --lowering native`). On TensorRT 8: **not run**."
        ),
    ),
    looks_at="L4T's release and TensorRT's version",
    check=_check,
    sources=(
        "SeanWangJS/grid-sample3d-trt-plugin#13",
        "osnava/learnJetson#10",
        "JetPack release notes; Torch-TensorRT's page on JetPack 6.1",
    ),
)
