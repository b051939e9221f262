# SPDX-License-Identifier: Apache-2.0
"""How long a call of an engine takes, and under which conditions."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stormrt.pipeline.device.conditions import read_conditions
from stormrt.pipeline.device.report import Benchmark, Conditions, Latency
from stormrt.runtime.engine import Engine

CALLS = 200
WARM_UP = 50
_WARM_UP_S = 1.0
"""Clocks rise within some tenths of a second of work."""


def benchmark_engine(
    engine: Engine,
    *,
    cuda_graph: bool,
    note: str = "",
    calls: int = CALLS,
    conditions: Callable[[], Conditions] = read_conditions,
) -> Benchmark:
    """Time an engine on an image of noise.

    Args:
        engine: Loaded with or without graphs.
        cuda_graph: Which of them.
        note: Why without.
        calls: How many count.
        conditions: Tells power mode, clocks and temperature.

    Raises:
        InputError: The engine does not run.
    """
    spec = engine.spec
    shape = (spec.most_batch, *spec.input.item_shape)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    warm = _warm_up(lambda: engine.infer(images))
    before = conditions()
    alone = engine.time_runs(calls)
    whole = np.empty(calls)
    for index in range(calls):
        started = time.perf_counter()
        engine.infer(images)
        whole[index] = 1e3 * (time.perf_counter() - started)
    return Benchmark(
        status="done",
        reason=note,
        batch=spec.most_batch,
        cuda_graph=cuda_graph,
        warm_up=warm,
        calls=calls,
        engine=latency(alone),
        call=latency(whole),
        before=before,
        after=conditions(),
    )


def _warm_up(call: Callable[[], object]) -> int:
    started, count = time.perf_counter(), 0
    while count < WARM_UP or time.perf_counter() - started < _WARM_UP_S:
        call()
        count += 1
    return count


def latency(milliseconds: NDArray[np.float64]) -> Latency:
    """Percentiles, with six significant digits."""
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    numbers = (p50, p90, p99, milliseconds.mean(), milliseconds.min(), milliseconds.max())
    return Latency(*(float(f"{number:.6g}") for number in numbers))


def not_timed(reason: str, batch: int) -> Benchmark:
    """The record of an engine that could not be run."""
    return Benchmark("not run", reason, batch, False, 0, 0, None, None, None, None)
