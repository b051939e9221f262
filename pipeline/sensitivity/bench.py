# SPDX-License-Identifier: Apache-2.0
"""Runs graphs on the images that layers are ranked on, and keeps what was measured."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.datasets import open_dataset, spread
from stormrt.pipeline.evaluation import match_classes, top1_of
from stormrt.pipeline.files import code_digest, sha256_file, sha256_text, write_text
from stormrt.pipeline.graph_stages import version
from stormrt.pipeline.metrics import compare
from stormrt.pipeline.model_spec import card_of
from stormrt.pipeline.predictors import Predict, onnxruntime_predictor
from stormrt.pipeline.schema import SensitivityProgress

if TYPE_CHECKING:
    import onnx

PROGRESS_NAME = "sensitivity.json"

_TRIAL_NAME = "sensitivity-trial.onnx"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is ranked, and on what."""

    graph: Path
    """Exported, FP32."""
    table: CalibrationTable
    """Of that graph."""
    images: NDArray[np.float32]
    """[n, 3, H, W], preprocessed."""
    work: Path
    """Folder that keeps what was measured."""
    labelled: Path | None = None
    """Labelled images."""


class Numbers(TypedDict):
    """What a graph did."""

    rel_l2: float
    argmax_agreement: float
    top1: float | None


class Bench:
    """Runs graphs on the subject's images, and keeps what was measured in its folder."""

    def __init__(self, subject: Subject) -> None:
        from stormrt.pipeline.onnx_file import load_onnx

        self._subject, self._spec = subject, subject.table.model
        self.model = load_onnx(subject.graph)
        self._file = subject.work / PROGRESS_NAME
        facts = [
            sha256_text(subject.table.to_json()),
            sha256_file(subject.graph),
            hashlib.sha256(subject.images.tobytes()).hexdigest(),
            self._labels(),
            version("onnxruntime"),
            code_digest(),
        ]
        key = sha256_text(json.dumps(facts))
        self.kept = self._taken_up(key)
        self._logits: NDArray[np.float32] | None = None
        self._fp32: Predict | None = None

    def _taken_up(self, key: str) -> SensitivityProgress:
        try:
            kept = SensitivityProgress.read(self._file)
        except InputError:  # missing, or of another version
            return SensitivityProgress(key=key)
        return kept if kept.key == key else SensitivityProgress(key=key)

    def save(self) -> None:
        """Write what was measured."""
        write_text(self._file, self.kept.to_json())

    def _labels(self) -> str | None:
        """Stands for the labelled images that can be looked at."""
        if self._subject.labelled is None:
            return None
        data = open_dataset(self._subject.labelled, None)
        match_classes(data, self._spec.num_classes, card_of(self._spec))
        digest = hashlib.sha256()
        for index in range(len(data)):
            source = data.source(index)
            content = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(f"{data.label(index)}:{len(content)}:".encode() + content)
        return digest.hexdigest()

    def labelled(self, limit: int) -> int:
        """How many labelled images a top-1 is of."""
        if self._subject.labelled is None:
            return 0
        return len(spread(len(open_dataset(self._subject.labelled, None)), limit))

    def fp32_top1(self, limit: int) -> float | None:
        """The reference's, on at most this many labelled images."""
        if self._subject.labelled is None:
            return None
        if str(limit) not in self.kept.top1:
            self.kept.top1[str(limit)] = self._top1(self._reference(), limit)
            self.save()
        return self.kept.top1[str(limit)]

    def measured(self, graph: onnx.ModelProto, labelled: int) -> Numbers:
        """Distance of a native graph from FP32, and its top-1."""
        if self._logits is None:
            self._logits = self._run(self._reference())
            if not np.isfinite(self._logits).all():
                raise InputError(
                    "the model's FP32 outputs are not finite",
                    where=str(self._subject.graph),
                    fix="check the checkpoint",
                )
        predict = self._open(graph)
        metrics = compare(self._run(predict), self._logits)
        top1 = None
        if self._subject.labelled is not None:
            # An output that is not finite names no class.
            top1 = self._top1(predict, labelled) if math.isfinite(metrics.rel_l2) else 0.0
        return {
            "rel_l2": metrics.rel_l2,
            "argmax_agreement": metrics.argmax_agreement,
            "top1": top1,
        }

    def _reference(self) -> Predict:
        if self._fp32 is None:
            from stormrt.pipeline.lower import lower_model

            copy = copied(self.model)
            lower_model(copy, "native")
            self._fp32 = self._open(copy)
        return self._fp32

    def _open(self, graph: onnx.ModelProto) -> Predict:
        from stormrt.pipeline.onnx_file import save_onnx

        path = self._subject.work / _TRIAL_NAME
        save_onnx(graph, path)
        try:
            return onnxruntime_predictor(path, self._spec)
        finally:
            path.unlink()

    def _run(self, predict: Predict) -> NDArray[np.float32]:
        images, batch = self._subject.images, self._spec.batch
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        return np.concatenate([predict(part) for part in parts])

    def _top1(self, predict: Predict, limit: int) -> float:
        labelled = self._subject.labelled
        assert labelled is not None  # the callers' condition
        return top1_of(predict, self._spec, labelled, limit)[0]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph to change."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy
