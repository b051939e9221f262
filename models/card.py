# SPDX-License-Identifier: Apache-2.0
"""The card beside a checkpoint: which classes its outputs stand for."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stormrt.errors import InputError
from stormrt.reading import parse_json, read_small


class ModelCard(BaseModel):
    """What ``NAME.json`` says of ``NAME.safetensors``, as far as the pipeline needs it.

    ``benchmarks/train_demo_models.py`` writes it, with the training's recipe and log beside.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the outputs, in their order."""
    sha256: str | None = None
    """Of the weights that the card is of."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a class is named twice")
        return names


def read_card(checkpoint: Path, sha256: str) -> ModelCard | None:
    """Read the card beside a checkpoint: the file of the same name that ends in ``.json``.

    Args:
        checkpoint: The weights.
        sha256: Their digest, hexadecimal.

    Returns:
        The card; None where there is none, or the file says nothing of classes and so is none.

    Raises:
        InputError: The file is damaged, or is the card of other weights.
    """
    path = checkpoint.with_suffix(".json")
    if not path.is_file():
        return None
    try:
        content = parse_json(read_small(path))
        if not isinstance(content, dict) or "classes" not in content:
            return None
        card = ModelCard.model_validate(content)
    except (OSError, ValueError) as error:
        raise InputError(
            "the class names beside the checkpoint could not be read",
            where=str(path),
            got=_reason(error),
            expected='a JSON object with "classes", the names of the outputs in their order',
            fix="mend the file, or remove it: outputs then have no names",
        ) from error
    if card.sha256 is not None and card.sha256 != sha256:
        raise InputError(
            "the class names beside the checkpoint are of other weights",
            where=str(path),
            got=f"weights with SHA-256 {sha256}",
            expected=f"SHA-256 {card.sha256}",
            fix="copy both files from one place",
        )
    return card


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors(include_url=False)[:3]
        )
    return str(error)
