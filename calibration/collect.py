# SPDX-License-Identifier: Apache-2.0
"""Runs a graph in onnxruntime and keeps what its tensors were like, batch by batch.

No more than one batch's tensors are in memory. What is kept so far is written every few seconds:
a run that was killed goes on with the images that it had not seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from stormrt.calibration.histogram import BINS
from stormrt.calibration.statistics import (
    NotFiniteError,
    Statistics,
    load_statistics,
    save_statistics,
)
from stormrt.calibration.table import CalibrationImage
from stormrt.errors import InputError
from stormrt.pipeline.artifacts import INPUT_NAME
from stormrt.pipeline.files import code_digest
from stormrt.pipeline.onnx_file import load_onnx

SAVE_EVERY_S = 5.0
"""Seconds between two writings: what a killed run loses at most, beside its batch."""

Progress = Callable[[int, int], None]
"""Called with the images done and how many there are."""


class Images(Protocol):
    """Images in a fixed order (``images.CalibrationImages``)."""

    @property
    def images(self) -> Sequence[CalibrationImage]:
        """Their names and digests."""

    def load(self, index: int) -> NDArray[np.float32]:
        """One of them, [3, H, W]."""


def collect(
    model: onnx.ModelProto | Path,
    tensors: Sequence[str],
    images: Images,
    *,
    batch: int,
    also: Sequence[str] = (),
    keep: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    on_image: Progress = lambda *_: None,
) -> Statistics:
    """Observe tensors of a graph over images.

    Args:
        model: The graph, or its file; it is not changed.
        tensors: Names of FP32 values [B, C, ...]; the graph's input may be one of them.
        images: What goes in.
        batch: B, of the graph's input.
        also: Names of FP32 values of any shape of which only the largest is kept.
        keep: File for what was kept so far. What an earlier run left there is taken up if it is
            of the same graph and tensors and of the first of these images; otherwise it is
            written over.
        save_every_s: Seconds between two writings.
        on_image: Told of each batch, and at the start of what was there already.

    Returns:
        The statistics of all images.

    Raises:
        InputError: A tensor is missing, has no channels, or holds NaN or infinity; onnxruntime
            refuses the graph; an image has changed; or the file cannot be written.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(load_onnx(model) if isinstance(model, Path) else model)
    names = list(dict.fromkeys(tensors))
    also = [name for name in dict.fromkeys(also) if name not in names]
    inner = [name for name in (*names, *also) if name != INPUT_NAME]
    _expose(proto, inner)
    content = proto.SerializeToString(deterministic=True)
    del proto
    key = _key(content, names, also)
    wanted = [image.sha256 for image in images.images]
    statistics = _taken_up(keep, key, wanted)
    on_image(len(statistics.images), len(wanted))
    if len(statistics.images) == len(wanted):
        return statistics
    session = _open_session(content)
    del content
    saved = time.monotonic()
    for start in range(len(statistics.images), len(wanted), batch):
        part = range(start, min(start + batch, len(wanted)))
        fed = np.stack([images.load(index) for index in part])
        # A graph takes one number of images alone; the last of them fills the batch up.
        filled = np.concatenate([fed, np.repeat(fed[-1:], batch - len(part), axis=0)])
        outputs = session.run(inner, {INPUT_NAME: filled}) if inner else []
        seen = dict(zip(inner, outputs, strict=True))
        if INPUT_NAME in names:
            seen[INPUT_NAME] = fed
        for name in names:
            _observe(statistics, name, seen[name], [images.images[i].name for i in part], batch)
        for name in also:
            _observe_largest(
                statistics, name, seen[name], [images.images[i].name for i in part], batch
            )
        statistics.images += [wanted[index] for index in part]
        done = len(statistics.images)
        if keep is not None and (done == len(wanted) or time.monotonic() - saved >= save_every_s):
            save_statistics(statistics, keep, key)
            saved = time.monotonic()
        on_image(done, len(wanted))
    return statistics


def _expose(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make inner values outputs of a graph, in place."""
    made = {name for node in proto.graph.node for name in node.output}
    missing = [name for name in names if name not in made]
    if missing:
        raise InputError(
            "the graph has no such tensor",
            got=", ".join(missing[:5]),
            expected="names of values that its nodes make",
        )
    there = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in there
    )


def _key(content: bytes, names: Sequence[str], also: Sequence[str]) -> str:
    """Stands for what the numbers depend on beside the images."""
    graph = hashlib.sha256(content).hexdigest()
    facts = [graph, sorted(names), sorted(also), BINS, onnxruntime.__version__, code_digest()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _taken_up(keep: Path | None, key: str, wanted: Sequence[str]) -> Statistics:
    """What an earlier run has left for these images; nothing where it saw others."""
    found = load_statistics(keep, key) if keep is not None else None
    if found is None or found.images != list(wanted[: len(found.images)]):
        return Statistics()
    return found


def _open_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Between two runs the cores are counting: threads that spin would be in the way.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            content, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception classes share no base
        raise InputError("onnxruntime refuses the graph", got=str(error).splitlines()[0]) from error


def _observe(
    statistics: Statistics,
    name: str,
    values: NDArray[np.float32],
    images: Sequence[str],
    batch: int,
) -> None:
    """Take in a tensor's first values, one for each image.

    Args:
        statistics: Taken into.
        name: The tensor's.
        values: [B, C, ...].
        images: Names of those that count; the rest of the batch only fills it.
        batch: B.
    """
    if values.ndim < 2 or values.dtype != np.float32 or len(values) not in (batch, len(images)):
        raise InputError(
            "the tensor has no channels to observe",
            where=name,
            got=f"{values.dtype} {list(values.shape)}",
            expected=f"float32 [{batch}, channels, ...]",
        )
    try:
        statistics.observe(name, values[: len(images)])
    except NotFiniteError as error:
        bad = next(i for i, image in enumerate(values) if not np.isfinite(image).all())
        raise _not_finite(name, f"channel {error.channel}, image {images[bad]}") from error


def _observe_largest(
    statistics: Statistics,
    name: str,
    values: NDArray[np.float32],
    images: Sequence[str],
    batch: int,
) -> None:
    """Take in the largest of a value. Arguments: ``_observe``; but of any shape."""
    # What only fills the batch up is left out where the value has one entry for each image.
    by_image = values.ndim > 0 and len(values) == batch
    try:
        statistics.observe_largest(name, values[: len(images)] if by_image else values)
    except NotFiniteError as error:
        raise _not_finite(name, f"among the images {', '.join(images)}") from error


def _not_finite(name: str, got: str) -> InputError:
    return InputError(
        "an activation is not finite: NaN or infinity in FP32",
        where=name,
        got=got,
        fix="check the checkpoint: stormrt evaluate --precision fp32 shows whether its outputs "
        "are finite",
    )
