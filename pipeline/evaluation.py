# SPDX-License-Identifier: Apache-2.0
"""How often a model names the right class, and what it sees in one photograph.

Both run what a build would make (``predictors``), on images that are never enlarged
(``photographs.preprocess_labelled``): an enlarged image has no detail that a model could lose by
dropping tokens, so that its accuracy would flatter every reduction.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.locking import folder_lock
from stormrt.models import ModelCard
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.build import StageEvent
from stormrt.pipeline.datasets import Dataset, open_dataset, spread
from stormrt.pipeline.files import require_folder
from stormrt.pipeline.model_spec import as_card_says, card_of, describe_weights, resolve_spec
from stormrt.pipeline.photographs import (
    UnreadableImageError,
    image_size,
    is_too_small,
    preprocess_labelled,
    too_small,
)
from stormrt.pipeline.predictors import (
    Executor,
    Predict,
    RuntimeChoice,
    choose_executor,
    open_predictor,
)
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.schema import Classification, ClassProbability, Evaluation, SkippedImage

DEFAULT_BATCH = 8
MOST_UNREADABLE = 0.05
"""Share of the images that may be unreadable: with more, the data are not what they should be."""

_SHOWN = 5
"""How many names a message lists."""

ImageEvent = Callable[[int, int], None]
"""Called with the images done and how many there are."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Which model, and what runs it; not yet checked. None: the model's own."""

    model: str
    checkpoint: Path | None = None
    num_classes: int | None = None
    """None: as many as the checkpoint's card names, else the variant's."""
    storm: str = "keep=1"
    precision: str = "fp32"
    runtime: RuntimeChoice = "onnxruntime"
    target: str | None = None
    """Recipe of the engine; None: the first for this machine's GPU."""
    calibration: Path | None = None
    """Of INT8: a table, or images."""
    height: int | None = None
    """Image height in pixels."""
    width: int | None = None
    batch: int = DEFAULT_BATCH
    seed: int = 0
    work: Path | None = None
    """Folder that keeps graphs and engine for the next run; None: a temporary one."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """On which images a model is evaluated; not yet checked."""

    model: ModelRequest
    data: Path
    split: str | None = None
    """Of an npz; None: test."""
    limit: int | None = None
    """At most this many images, spread evenly over all."""


def evaluate(
    request: EvaluationRequest,
    *,
    on_stage: StageEvent = lambda *_: None,
    on_image: ImageEvent = lambda *_: None,
) -> Evaluation:
    """Evaluate a model on a data set.

    Everything that can be refused without running the model is refused first: the request, the
    data's layout and classes, and from their headers the sizes of all images.

    Args:
        request: What was asked for.
        on_stage: Told of each stage that makes the model.
        on_image: Told of each batch.

    Raises:
        InputError: Bad input: the model, the data, classes that are not the model's, an image
            that is too small, or more than ``MOST_UNREADABLE`` of them that cannot be read.
        EnvironmentMissingError: A package or, for an engine, a GPU is missing.
    """
    if request.limit is not None and request.limit < 1:
        raise InputError("the limit is too small", where="--limit", got=str(request.limit))
    spec, card, executor = _resolve(request.model)
    dataset = open_dataset(request.data, request.split)
    classes, outputs = match_classes(dataset, spec.num_classes, card)
    indices = spread(len(dataset), request.limit)
    _survey(dataset, indices, spec)
    with _predictor(request.model, spec, executor, on_stage) as predict:
        started = time.perf_counter()
        confusion, skipped = _count(dataset, indices, spec, predict, outputs, on_image)
        seconds = time.perf_counter() - started
    images, correct = int(confusion.sum()), int(confusion.trace())
    return Evaluation(
        top1=correct / images,
        images=images,
        correct=correct,
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        skipped=skipped,
        data=dataset.where,
        model=spec,
        plan=spec.plan.describe(),
        weights=describe_weights(spec),
        precision=executor.precision,
        runtime=executor.runtime,
        seconds=round(seconds, 3),
        versions=tools(),
    )


def top1_of(
    predict: Predict,
    spec: ModelSpec,
    data: Path,
    limit: int | None = None,
    on_image: ImageEvent = lambda *_: None,
) -> tuple[float, int]:
    """Top-1 (0 to 1) of a model that is held ready, and of how many images.

    Args:
        predict: The model.
        spec: What it is.
        data: Labelled images, as for ``evaluate``.
        limit: At most this many images, spread evenly over all.
        on_image: Told of each batch.

    Raises:
        InputError: As ``evaluate``.
    """
    dataset = open_dataset(data, None)
    _, outputs = match_classes(dataset, spec.num_classes, card_of(spec))
    indices = spread(len(dataset), limit)
    _survey(dataset, indices, spec)
    confusion, _ = _count(dataset, indices, spec, predict, outputs, on_image)
    return int(confusion.trace()) / int(confusion.sum()), int(confusion.sum())


def classify(
    request: ModelRequest,
    photograph: Path,
    *,
    top: int = 5,
    on_stage: StageEvent = lambda *_: None,
) -> Classification:
    """Say what a model sees in a photograph.

    Args:
        request: The model; its batch is taken as 1.
        photograph: An image file, as large as the model's input or larger.
        top: How many classes to name; fewer where the model has fewer.
        on_stage: Told of each stage that makes the model.

    Raises:
        InputError: Bad input: the model, or the photograph.
        EnvironmentMissingError: A package or, for an engine, a GPU is missing.
    """
    if top < 1:
        raise InputError("there must be a class to name", where="--top", got=str(top))
    request = replace(request, batch=1)
    spec, card, executor = _resolve(request)
    if card is not None:
        _require_as_many(card, spec.num_classes)
    image = preprocess_labelled(photograph, str(photograph), spec.height, spec.width)
    with _predictor(request, spec, executor, on_stage) as predict:
        logits = _finite(predict(image[None]), spec)[0].astype(np.float64)
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return Classification(
        photograph=str(photograph),
        classes=tuple(
            ClassProbability(
                name=card.classes[i] if card else f"class {i}",
                index=i,
                probability=float(f"{probabilities[i]:.6g}"),
            )
            for i in order
        ),
        model=spec,
        plan=spec.plan.describe(),
        weights=describe_weights(spec),
        precision=executor.precision,
        runtime=executor.runtime,
        versions=tools(),
    )


def _resolve(request: ModelRequest) -> tuple[ModelSpec, ModelCard | None, Executor]:
    spec = resolve_spec(
        request.model,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        storm=request.storm,
        height=request.height,
        width=request.width,
        batch=request.batch,
        seed=request.seed,
    )
    executor = choose_executor(
        request.runtime, request.precision, request.target, request.calibration
    )
    return *as_card_says(spec, request.num_classes), executor


@contextmanager
def _predictor(
    request: ModelRequest, spec: ModelSpec, executor: Executor, on_stage: StageEvent
) -> Iterator[Predict]:
    if request.work is None:
        with (
            tempfile.TemporaryDirectory(prefix="stormrt-") as folder,
            open_predictor(spec, executor, Path(folder), on_stage) as predict,
        ):
            yield predict
        return
    require_folder(request.work)
    with (
        folder_lock(request.work),
        open_predictor(spec, executor, request.work, on_stage) as predict,
    ):
        yield predict


def match_classes(
    dataset: Dataset, outputs: int, card: ModelCard | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Find the model's output for each class of the data.

    With a card, by name: the data's order does not count, and classes of the model may be missing
    from the data. Without one the data's classes are taken for the outputs, in their order.

    Args:
        dataset: The data.
        outputs: How many the model has.
        card: Names them.

    Returns:
        The outputs' names, and the output of each class of the data.

    Raises:
        InputError: The data have a class that the model has not, or, without a card, another
            number of classes.
    """
    if card is None:
        if len(dataset.classes) != outputs:
            raise InputError(
                f"the data have {len(dataset.classes)} classes and the model has {outputs}",
                where=dataset.where,
                got=_listing(dataset.classes),
                expected=f"{outputs} classes, in the order of the outputs: no card names those",
                fix="give the model's own data; for weights of another number of classes "
                f"--classes {len(dataset.classes)}",
            )
        return dataset.classes, tuple(range(outputs))
    _require_as_many(card, outputs)
    places = {name: index for index, name in enumerate(card.classes)}
    unknown = [name for name in dataset.classes if name not in places]
    if unknown:
        raise InputError(
            "the data have classes that the model does not know",
            where=dataset.where,
            got=_listing(unknown),
            expected=f"among {_listing(card.classes)}",
            fix="name the data's classes as the model's card does, or give the model's own data",
        )
    return card.classes, tuple(places[name] for name in dataset.classes)


def _require_as_many(card: ModelCard, outputs: int) -> None:
    if len(card.classes) != outputs:
        raise InputError(
            f"the checkpoint's card names {len(card.classes)} classes",
            where="--classes",
            got=str(outputs),
            fix="leave --classes out",
        )


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2 * _SHOWN} more" if len(names) > 2 * _SHOWN else ""
    return ", ".join(names[: 2 * _SHOWN]) + more


def _survey(dataset: Dataset, indices: Sequence[int], spec: ModelSpec) -> None:
    """Refuse, from the images' headers alone, what would be refused after minutes of work."""
    small: list[tuple[str, tuple[int, int]]] = []
    unreadable: list[SkippedImage] = []
    for index in indices:
        name = dataset.name(index)
        try:
            size = image_size(dataset.source(index), name)
        except UnreadableImageError as error:
            unreadable.append(_skipped(name, error))
            _require_few(unreadable, len(indices), dataset)
            continue
        if is_too_small(size, spec.height, spec.width):
            small.append((name, size))
    if small:
        name, size = min(small, key=lambda found: min(found[1]))
        count = f", the smallest of {len(small)} such" if len(small) > 1 else ""
        where = f"{dataset.where}: {name}{count}"
        raise too_small(size, where, spec.height, spec.width)


def _skipped(name: str, error: UnreadableImageError) -> SkippedImage:
    return SkippedImage(name=name, reason=error.got or error.what)


def _require_few(skipped: Sequence[SkippedImage], images: int, dataset: Dataset) -> None:
    if len(skipped) > MOST_UNREADABLE * images:
        named = "\n            ".join(f"{s.name}: {s.reason}" for s in skipped[:_SHOWN])
        raise InputError(
            f"more than {MOST_UNREADABLE:.0%} of the {images} images cannot be read",
            where=dataset.where,
            got=named,
            fix="mend or remove them; these are the first",
        )


def _count(
    dataset: Dataset,
    indices: Sequence[int],
    spec: ModelSpec,
    predict: Predict,
    outputs: Sequence[int],
    on_image: ImageEvent,
) -> tuple[NDArray[np.int64], tuple[SkippedImage, ...]]:
    """Classify every image, a batch of them decoded at a time.

    Returns:
        Counts [classes, classes], INT64, by true and predicted class, and what was skipped.
    """
    confusion = np.zeros((spec.num_classes, spec.num_classes), np.int64)
    skipped: list[SkippedImage] = []
    batch: list[NDArray[np.float32]] = []
    truth: list[int] = []

    def run() -> None:
        logits = _finite(predict(np.stack(batch)), spec)
        np.add.at(confusion, (truth, logits.argmax(1)), 1)
        batch.clear()
        truth.clear()

    on_image(0, len(indices))
    for done, index in enumerate(indices, 1):
        name = dataset.name(index)
        try:
            image = preprocess_labelled(dataset.source(index), name, spec.height, spec.width)
        except UnreadableImageError as error:
            skipped.append(_skipped(name, error))
            _require_few(skipped, len(indices), dataset)
        else:
            batch.append(image)
            truth.append(outputs[dataset.label(index)])
        if len(batch) == spec.batch:
            run()
            on_image(done, len(indices))
    if batch:
        run()
    on_image(len(indices), len(indices))
    return confusion, tuple(skipped)


def _finite(logits: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise InputError(
            "the model's outputs are not finite",
            where=spec.checkpoint or describe_weights(spec),
            fix="check the checkpoint, and whether --precision fp32 gives finite outputs",
        )
    return logits
