# SPDX-License-Identifier: Apache-2.0
"""Runs or skips stages outside a build: for an evaluation, or for a calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.stage_cache import StageCache

if TYPE_CHECKING:
    from stormrt.pipeline.build import StageEvent

_T = TypeVar("_T")


class StageRunner:
    """Runs or skips stages in a work folder (``graph_stages.RunStage``).

    Args:
        work: The folder.
        on_stage: Told of each stage.
    """

    def __init__(self, work: Path, on_stage: StageEvent) -> None:
        self._cache, self._on_stage = StageCache(work), on_stage

    def __call__(
        self,
        name: str,
        kind: type[_T],
        depends_on: dict[str, object],
        compute: Callable[[], _T],
        files_of: Callable[[_T], tuple[FileDigest, ...]],
    ) -> _T:
        """The stage's artefact. Arguments and errors: ``StageCache.run``."""
        key = self._cache.key(name, depends_on)
        found = self._cache.load(name, kind, key)
        if found is not None:
            self._on_stage(name, "skipped", 0.0)
            return found
        self._on_stage(name, "run", None)
        made = self._cache.run(name, kind, key, compute, files_of)
        self._on_stage(name, "run", self._cache.seconds[name])
        return made
