# SPDX-License-Identifier: Apache-2.0
"""Random inputs: new in each run, and the same again with STORMRT_TEST_SEED=123 pytest ..."""

from __future__ import annotations

import os

import numpy as np

SEED = int(os.environ.get("STORMRT_TEST_SEED", np.random.SeedSequence().entropy % 2**32))


def generator(label: str) -> np.random.Generator:
    """A generator that depends on the seed of the run and on a label, and on nothing else."""
    print(f"STORMRT_TEST_SEED={SEED}")  # pytest shows it where a test fails
    return np.random.default_rng([SEED, *label.encode()])
