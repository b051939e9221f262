# SPDX-License-Identifier: Apache-2.0
"""Top-1 of many rows over one test set: what rows of one place share is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch

from benchmarks.storm_baselines.segments import Prefix, Reduced, Where, prefix
from benchmarks.storm_eval.cases import Case
from benchmarks.storm_eval.data import TestSet
from stormrt.storm.vmamba import VMamba

_TOKENS_A_BATCH = 640_000
"""Of stage 0: large enough that the GPU, not Python, sets the pace."""


def batch_size(model: VMamba) -> int:
    """Images a batch, by the model's number of tokens."""
    side = model.variant.image // model.variant.patch
    return max(1, _TOKENS_A_BATCH // side**2)


class Evaluator:
    """One model on one test set.

    Args:
        model: Dense, in evaluation mode, of the images' type, on their device.
        data: The test set.
        batch: Images a batch.
    """

    def __init__(self, model: VMamba, data: TestSet, batch: int) -> None:
        self.model, self.data, self.batch = model, data, batch
        self._known: dict[tuple[object, ...], float] = {}

    def __call__(self, rows: Iterable[Case]) -> Iterator[tuple[Case, float]]:
        """Evaluate rows in their order, those of one place that follow each other together.

        Yields:
            Each row and its top-1, 0 to 1.
        """
        for place, together in groupby(rows, key=lambda row: row.place):
            shared = None if place is None else self._prefix(place)
            for row in together:
                if row.work not in self._known:
                    self._known[row.work] = self._top1(row, shared)
                yield row, self._known[row.work]

    @torch.inference_mode()
    def _prefix(self, place: Where) -> list[Prefix]:
        return [prefix(self.model, part, place) for part in self.data.images.split(self.batch)]

    @torch.inference_mode()
    def _top1(self, row: Case, shared: Sequence[Prefix] | None) -> float:
        network = row.build(self.model)
        if shared is None:
            parts = self.data.images.split(self.batch)
            logits = [network(part) for part in parts]
        else:
            assert isinstance(network, Reduced), row.method
            logits = [network.from_prefix(part) for part in shared]
        right = torch.cat(logits).argmax(1) == self.data.labels
        return int(right.sum()) / len(right)
