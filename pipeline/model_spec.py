# SPDX-License-Identifier: Apache-2.0
"""What a user says of a model -> a checked ``ModelSpec``, without PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stormrt.errors import InputError
from stormrt.models import ModelCard, bundled, read_card, weights_path
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.files import sha256_file
from stormrt.storm.plan import check_plan, parse_plan, stage_grids
from stormrt.storm.variants import get_variant


def resolve_spec(
    name: str,
    *,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    storm: str = "keep=1",
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    dynamic_batch: bool = False,
    seed: int = 0,
) -> ModelSpec:
    """Check what was asked of a model, and fill in what was not.

    Args:
        name: A key of ``stormrt.storm.VARIANTS``.
        checkpoint: Weights. None: those that come with the package, where there are any and the
            model has as many classes as they have; else random ones from ``seed``.
        num_classes: Outputs; None: as many as the variant's published weights have.
        storm: A plan, as ``parse_plan`` reads it.
        height: Image height in pixels; None: that of the images that the variant was trained for.
        width: Image width in pixels; likewise.
        batch: Images a call; with ``dynamic_batch``, the most.
        dynamic_batch: Whether smaller batches may be given.
        seed: Of random weights.

    Raises:
        InputError: Anything that is wrong with it.
    """
    variant = get_variant(name)
    num_classes = variant.num_classes if num_classes is None else num_classes
    height = variant.image if height is None else height
    width = variant.image if width is None else width
    _check_numbers(batch=batch, num_classes=num_classes, seed=seed)
    stage_grids(variant, height, width)
    plan = parse_plan(storm, variant, height, width)
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(
            "the checkpoint does not exist",
            where=str(checkpoint),
            fix="check the path; upstream's files are on the releases page of MzeroMiko/VMamba",
        )
    reference = None if checkpoint is None else str(checkpoint)
    if reference is None and num_classes == variant.num_classes:
        reference = bundled(name)
    return ModelSpec(
        name=variant.name,
        num_classes=num_classes,
        checkpoint=reference,
        checkpoint_sha256=None if reference is None else sha256_file(weights_path(reference)),
        seed=seed,
        height=height,
        width=width,
        batch=batch,
        dynamic_batch=dynamic_batch,
        plan=plan,
    )


MOST_BATCH, MOST_CLASSES, MOST_SIDE = 4096, 1_000_000, 99_999
"""Beyond these a file was damaged, or made to do harm."""


def check_spec(spec: ModelSpec, where: str) -> None:
    """Check a spec that came from a file.

    Args:
        spec: The spec.
        where: The file.

    Raises:
        InputError: It cannot be one that ``resolve_spec`` made.
    """
    variant = get_variant(spec.name)
    _check_numbers(batch=spec.batch, num_classes=spec.num_classes, seed=spec.seed)
    for what, value, most in (
        ("batch", spec.batch, MOST_BATCH),
        ("num_classes", spec.num_classes, MOST_CLASSES),
        ("height", spec.height, MOST_SIDE),
        ("width", spec.width, MOST_SIDE),
    ):
        if value > most:
            raise InputError(
                "the model's sizes are out of range",
                where=f"{where}: model.{what}",
                got=str(value) if value < 2**63 else "a number of more than 19 digits",
                expected=f"at most {most}",
            )
    check_plan(spec.plan, variant, spec.height, spec.width)


def _check_numbers(*, batch: int, num_classes: int, seed: int) -> None:
    if batch < 1:
        raise InputError("the batch is too small", where="--batch", got=str(batch))
    if num_classes < 1:
        raise InputError("there must be a class", where="--classes", got=str(num_classes))
    if not 0 <= seed < 2**63:
        raise InputError(
            "the seed is out of range", where="--seed", got=str(seed), expected="0 to 2^63 - 1"
        )


def as_card_says(spec: ModelSpec, asked: int | None) -> tuple[ModelSpec, ModelCard | None]:
    """A spec with as many classes as its weights' card names, unless a number was asked for.

    Args:
        spec: From ``resolve_spec``.
        asked: Number of classes that the user gave.

    Returns:
        The spec, and the card, if there is one.

    Raises:
        InputError: The card is damaged, or of other weights.
    """
    card = card_of(spec)
    if card is not None and asked is None:
        spec = replace(spec, num_classes=len(card.classes))
    return spec, card


def card_of(spec: ModelSpec) -> ModelCard | None:
    """The card beside the spec's weights, if there is one.

    Raises:
        InputError: It is damaged, or of other weights.
    """
    if spec.checkpoint is None or spec.checkpoint_sha256 is None:
        return None
    return read_card(weights_path(spec.checkpoint), spec.checkpoint_sha256)


def describe_weights(spec: ModelSpec) -> str:
    """Where the weights are from, in words."""
    if spec.checkpoint is None:
        return f"random, seed {spec.seed}"
    return f"{Path(spec.checkpoint).name}, SHA-256 {spec.checkpoint_sha256}"
