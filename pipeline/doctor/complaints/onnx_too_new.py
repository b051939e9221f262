# SPDX-License-Identifier: Apache-2.0
"""A graph's opset is newer than what the parser knows."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import (
    NO_SUBJECT,
    Complaint,
    Finding,
    cannot_tell,
    ok,
    problem,
)
from stormrt.pipeline.doctor.facts import Facts

_OPSETS = (((8, 2), 13), ((8, 5), 17), ((9, 2), 19), ((10, 15), 24))
"""Newest opset of some releases of the parser (docs/operators.md of onnx/onnx-tensorrt). Releases
between them take at least what the one before takes."""
_ANY = 19
"""What each supported TensorRT takes, 10.3 being the oldest."""


def _check(facts: Facts) -> Finding:
    if facts.subject is None:
        return cannot_tell(NO_SUBJECT)
    graph, version = facts.subject.graph, facts.version()
    if graph is None:
        return cannot_tell("the graph is not there, or the package onnx is not installed")
    told = f"opset {graph.opset}"
    if graph.opset <= _ANY and (version is None or version >= (10,)):
        return ok(f"{told}, which TensorRT 10.3 and later take")
    if version is None:
        return cannot_tell(f"{told}, and TensorRT does not load here")
    least = max((opset for since, opset in _OPSETS if since <= version[:2]), default=0)
    most = min((opset for since, opset in _OPSETS if since > version[:2]), default=None)
    here = f"TensorRT {'.'.join(map(str, version))}"
    if graph.opset <= least:
        return ok(f"{told}; {here} takes {least}")
    if most is None or graph.opset <= most:
        return cannot_tell(f"{told}; {here} is known to take {least}")
    return problem(
        f"{told}; {here} takes {least}, and no release before {most}'s takes more",
        f"export with opset {least} or less; stormrt export writes 18",
    )


COMPLAINT = Complaint(
    id="onnx-too-new",
    title="The parser does not know an operator or the opset",
    spoils="building engines",
    symptoms=(
        "No importer registered for op",
        "ONNX model has a newer ir_version",
        "Unsupported ONNX data type",
        "UNSUPPORTED_NODE",
        "Unsupported operator",
        "In function importFallbackPluginImporter",
        "Failed to parse onnx file",
    ),
    cause="An operator that the parser lacks is looked for among the plugins, and the message is "
    "then of a plugin. The graph was exported with a newer opset than this TensorRT knows, or it "
    "has stormrt's operators and [no library](#plugin-not-found).",
    mend=(
        "Export again with opset 17 to 19; `stormrt export` writes 18, which TensorRT 10.3 takes.",
        (
            "If the operator is `SelectiveScan2D` or `SpatialUnit...`: load the plugin library, or "
            "build the native graph (`stormrt export --lowering native`)."
        ),
    ),
    looks_at="the graph's opset against what the release's parser is known to take (needs the "
    "package onnx)",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#1775",
        "onnx/onnx-tensorrt#199",
        "NVIDIA/TensorRT#4639",
        "docs/operators.md of onnx/onnx-tensorrt: opsets of 8.2, 8.5, 9.2, 10.15",
    ),
)
