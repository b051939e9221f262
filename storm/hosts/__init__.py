# SPDX-License-Identifier: Apache-2.0
"""Host scores: how much each token of a map matters, [B, H, W], higher is kept.

STORM turns any such score into a choice of spatial units. One file a host, its source in its
docstring; ``register_host`` adds one from outside. All scores are FP32, so that FP16 graphs choose
as FP32 ones do. None of these modules imports PyTorch: plans are checked without it.
"""

from stormrt.storm.hosts.host import Host, Measure, Score
from stormrt.storm.hosts.registry import get_host, host_names, register_host, unregister_host

__all__ = ["Host", "Measure", "Score", "get_host", "host_names", "register_host", "unregister_host"]
