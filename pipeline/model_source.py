# SPDX-License-Identifier: Apache-2.0
"""``ModelSpec`` -> the PyTorch model that it describes."""

from __future__ import annotations

import torch

from stormrt.models import weights_path
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.storm.checkpoint import load_checkpoint
from stormrt.storm.vmamba import VMamba, build_vmamba


def build_model(spec: ModelSpec) -> VMamba:
    """The reduced model in its inference form, weights loaded or drawn from the spec's seed.

    Raises:
        InputError: The checkpoint is bad or is of another variant.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = build_vmamba(spec.name, spec.num_classes)
    if spec.checkpoint is not None:
        load_checkpoint(model, weights_path(spec.checkpoint))
    return model.with_plan(spec.plan).freeze()
