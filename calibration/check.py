# SPDX-License-Identifier: Apache-2.0
"""Reads a calibration table and refuses one that is of something else."""

from __future__ import annotations

from pathlib import Path

from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.model_spec import describe_weights
from stormrt.storm.plan import StormPlan
from stormrt.storm.variants import VARIANTS

TABLE_NAME = "calibration.json"


def read_table(path: Path) -> CalibrationTable:
    """Read a table's file.

    Raises:
        InputError: It is missing, damaged, or none.
    """
    try:
        return CalibrationTable.read(path)
    except InputError as error:
        raise InputError(
            "the calibration table could not be read",
            where=str(path),
            got=error.got or error.what,
            fix=f"make it: stormrt calibrate --model M --data IMAGES --out {path}",
        ) from error


def check_table(
    table: CalibrationTable,
    spec: ModelSpec,
    graph_sha256: str,
    *,
    where: str = "the calibration table",
) -> None:
    """Refuse a table whose ranges are of other activations than a graph's.

    The batch does not count, as it changes no activation; but where it is the same, the exported
    graph must be the very one, too.

    Args:
        table: From ``read_table`` or ``calibrate``.
        spec: The model that is built.
        graph_sha256: Of its exported graph (``ExportedGraph.file``).
        where: The table's file, for the message.

    Raises:
        InputError: It is of another model, checkpoint, image size, plan or export.
    """
    theirs = table.model
    differing = [
        (what, got, expected)
        for what, same, got, expected in (
            ("model", theirs.name == spec.name, theirs.name, spec.name),
            (
                "number of classes",
                theirs.num_classes == spec.num_classes,
                str(theirs.num_classes),
                str(spec.num_classes),
            ),
            (
                "checkpoint",
                _weights(theirs) == _weights(spec),
                describe_weights(theirs),
                describe_weights(spec),
            ),
            ("image size", _size(theirs) == _size(spec), _size(theirs), _size(spec)),
            ("STORM plan", theirs.plan == spec.plan, *_plans(theirs.plan, spec.plan)),
        )
        if not same
    ]
    same_batch = (theirs.batch, theirs.dynamic_batch) == (spec.batch, spec.dynamic_batch)
    if not differing and same_batch and table.graph_sha256 != graph_sha256:
        differing = [("export of the same model", table.graph_sha256, graph_sha256)]
    if not differing:
        return
    raise InputError(
        f"the calibration table is of another {' and another '.join(d[0] for d in differing)}",
        where=where,
        got="; ".join(d[1] for d in differing),
        expected="; ".join(d[2] for d in differing),
        fix=f"make one for this build: {calibrate_command(spec)}",
    )


def calibrate_command(spec: ModelSpec) -> str:
    """What to type for a model's table; a plan has no shorthand of its own to repeat."""
    words = ["stormrt calibrate --model", spec.name]
    bundled = spec.checkpoint is not None and spec.checkpoint.startswith("bundled:")
    if spec.checkpoint is not None and not bundled:
        words += ["--checkpoint", spec.checkpoint]
    if spec.checkpoint is None and spec.seed:
        words += ["--seed", str(spec.seed)]
    variant = VARIANTS.get(spec.name)
    if variant is None or spec.num_classes != variant.num_classes:
        words += ["--classes", str(spec.num_classes)]
    if variant is None or (spec.height, spec.width) != (variant.image, variant.image):
        words += ["--size", _size(spec)]
    if spec.plan.reductions:
        words += ["--storm PLAN"]
    return " ".join([*words, f"--data IMAGES --out {TABLE_NAME}"])


def _size(spec: ModelSpec) -> str:
    return f"{spec.height}x{spec.width}"


def _weights(spec: ModelSpec) -> str | int:
    """What tells weights apart: not the path of their file."""
    return spec.seed if spec.checkpoint_sha256 is None else spec.checkpoint_sha256


def _plans(theirs: StormPlan, ours: StormPlan) -> tuple[str, str]:
    """Both in words, or in full where the words are the same."""
    words = theirs.describe(), ours.describe()
    return words if words[0] != words[1] else (theirs.to_json(), ours.to_json())
