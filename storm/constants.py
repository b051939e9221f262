# SPDX-License-Identifier: Apache-2.0
"""Constants on a device, made once: a CUDA graph may not copy them there while it is captured."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def made_once(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Keep what a function of sizes and a device makes, but for what it makes of a traced graph."""

    @lru_cache(maxsize=256)
    def known(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # What is kept must serve training too, where a tensor of inference mode may not be saved.
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    @wraps(make)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling():
            # While a graph is traced tensors are not real, and must not be kept for later.
            return make(*args, **kwargs)
        return known(*args, **kwargs)  # type: ignore[arg-type]  # sizes and a device: hashable

    return made
