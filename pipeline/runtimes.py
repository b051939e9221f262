# SPDX-License-Identifier: Apache-2.0
"""Which runtime builds a target's engine, and whether this machine can do it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from stormrt.pipeline.probe import engine_run_blocker
from stormrt.targets import RuntimeName, RuntimeRecipe, Target


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """The runtime that a build is for."""

    recipe: RuntimeRecipe
    blocker: str | None
    """Why the engine cannot be built in this process; None where it can."""


def choose_runtime(target: Target, asked: RuntimeName | None) -> RuntimeChoice:
    """Choose a runtime: the one asked for, else the first that can build here, else the first.

    Raises:
        InputError: The target has no runtime of the name asked for.
    """
    if asked is not None:
        recipe = target.runtime(asked)
        return RuntimeChoice(recipe, build_blocker(recipe, target))
    choices = [RuntimeChoice(r, build_blocker(r, target)) for r in target.runtimes]
    return next((c for c in choices if c.blocker is None), choices[0])


def build_blocker(recipe: RuntimeRecipe, target: Target) -> str | None:
    """Why this machine cannot build an engine for the target with a runtime; None if it can."""
    if recipe.builds_without_gpu:
        if importlib.util.find_spec(recipe.name) is None:
            return f"{recipe.name} is not installed (pip install 'stormrt[rtx]')"
        return None
    return engine_run_blocker(recipe.name, target.device.sm)
