# SPDX-License-Identifier: Apache-2.0
"""From a budget to a plan: ``flops=0.75``, or ``latency<=3.0`` against measured times.

A ladder of plans (``ladder``) leads from the dense model down, one line at a time; a budget takes
the first rung that fits, so that one line more would not. Where lines leave, and how, is data
(``policies``). Times come from a benchmark's file (``measured``). Needs no PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.ladder import Ladder
from stormrt.storm.measured import neighbours, plan_between, read_measured
from stormrt.storm.plan import StormPlan, check_plan
from stormrt.storm.policies import DEFAULT_POLICY, Policy, policy_of
from stormrt.storm.variants import Variant


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan that fits a budget."""

    plan: StormPlan
    flops: int
    dense_flops: int
    ms: float | None = None
    """For a latency: measured, or interpolated between two measured plans."""
    measured: bool = False

    @property
    def share(self) -> float:
        """FLOPs over those of the dense model."""
        return self.flops / self.dense_flops

    def describe(self) -> str:
        """One line for reports."""
        text = f"{self.plan.describe()} ({self.share:.1%} of the dense FLOPs"
        if self.ms is not None:
            how = "measured" if self.measured else "interpolated between measured plans"
            text += f"; {self.ms:.3g} ms, {how}"
        return text + ")"


def plan_for_flops(
    variant: Variant,
    height: int,
    width: int,
    share: float,
    *,
    steps: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
) -> Choice:
    """The plan whose FLOPs are nearest to a share of the dense ones, from below.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        share: Of the dense model's FLOPs, more than 0 and at most 1.
        steps: How many reductions, over the depth; None: the policy's own number.
        policy: Where and how lines leave, or its name.

    Returns:
        The plan, and the share that it reaches: with one line more it would cost too much.

    Raises:
        InputError: The share is out of range, or below what the policy can reach.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(
            "the share of the dense FLOPs is out of range",
            where="flops=",
            got=f"{share:g}",
            expected="more than 0 and at most 1 (1 is the dense model)",
            fix="for instance flops=0.75",
        )
    name = policy if isinstance(policy, str) else "the policy given"
    chosen = policy_of(policy)
    steps = chosen.steps if steps is None else steps
    ladder = Ladder(variant, height, width, chosen, steps)
    rung = ladder.first_within(share * ladder.dense_flops)
    if rung == len(ladder):
        least = ladder.flops(len(ladder) - 1) / ladder.dense_flops
        earlier = "" if ladder.places[0] <= (0, 1) else "reduce earlier (policy=early), or "
        raise InputError(
            "no plan costs as little as that",
            where=f"{variant.name} at {height}x{width}, policy {name}, steps={steps}",
            got=f"flops={share:g}",
            expected=f"{math.ceil(least * 1000) / 1000:g} or more: with one line left "
            f"{least:.2%} of the dense FLOPs remain",
            fix=f"{earlier}take a smaller model",
        )
    plan = ladder[rung]
    check_plan(plan, variant, height, width)
    return Choice(plan, ladder.flops(rung), ladder.dense_flops)


def plan_for_latency(
    variant: Variant,
    height: int,
    width: int,
    milliseconds: float,
    benchmark: Path,
    *,
    batch: int = 1,
) -> Choice:
    """The plan that keeps most FLOPs of those that are fast enough.

    Times are those of a benchmark's file. Between two measured plans that differ in their line
    counts alone, and are neighbours by FLOPs, time is taken to grow linearly with the FLOPs;
    beyond the measured plans nothing is guessed. The dense model is no such neighbour: without
    reductions it also runs without their cost.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        milliseconds: The bound, in ms for a whole batch.
        benchmark: The file of measured times (see the module).
        batch: Images a batch.

    Returns:
        The plan and its time.

    Raises:
        InputError: The bound is no positive number, the file is bad, has no row for this model,
            size and batch, or none that is as fast.
    """
    if not 0.0 < milliseconds < math.inf:
        raise InputError(
            "the latency is no positive number", where="latency<=", got=f"{milliseconds:g}"
        )
    rows = read_measured(benchmark, variant, height, width, batch)
    dense = count_flops(variant, height, width).total
    choices = [Choice(r.plan, r.flops, dense, r.ms, True) for r in rows if r.ms <= milliseconds]
    if not choices:
        fastest = min(rows, key=lambda r: r.ms)
        raise InputError(
            "no measured plan is as fast as that",
            where=f"{variant.name} at {height}x{width}, batch {batch}, in {benchmark}",
            got=f"latency<={milliseconds:g}",
            expected=f"{fastest.ms:g} ms or more: {fastest.plan.describe()}",
            fix="measure plans that keep less, or take a smaller model",
        )
    for smaller, larger in neighbours(rows):
        if smaller.ms <= milliseconds < larger.ms:
            part = (milliseconds - smaller.ms) / (larger.ms - smaller.ms)
            budget = smaller.flops + part * (larger.flops - smaller.flops)
            plan = plan_between(variant, height, width, smaller.plan, larger.plan, budget)
            flops = count_flops(variant, height, width, plan).total
            if flops > smaller.flops:
                slope = (larger.ms - smaller.ms) / (larger.flops - smaller.flops)
                time = smaller.ms + slope * (flops - smaller.flops)
                choices.append(Choice(plan, flops, dense, time))
    # Of plans that cost the same, the faster; of those, always the same one.
    best = max(choices, key=lambda c: (c.flops, c.measured, -(c.ms or 0.0), c.plan.to_json()))
    check_plan(best.plan, variant, height, width)
    return best


def is_target(text: str) -> bool:
    """Whether a text is a budget, which ``plan_for_target`` reads."""
    return text.lstrip().startswith(("flops", "latency"))


@dataclass(frozen=True, slots=True)
class Target:
    """A budget: ``flops=F`` or ``latency<=X``, with its options."""

    kind: str
    """``flops`` or ``latency``."""
    value: float
    steps: int | None = None
    policy: str = DEFAULT_POLICY
    file: Path | None = None
    batch: int = 1


_FORMS = "flops=F[,steps=N][,policy=NAME], or latency<=MS,file=BENCHMARK.json[,batch=B]"
_OPTIONS = {"flops": {"steps", "policy"}, "latency": {"file", "batch"}}


def parse_target(text: str) -> Target:
    """Read ``flops=F[,steps=N][,policy=NAME]`` or ``latency<=MS,file=PATH[,batch=B]``.

    Raises:
        InputError: It is neither, has unknown options, or a number that is none.
    """
    head, *rest = (part.strip() for part in text.split(","))
    for kind, sign in (("flops", "="), ("latency", "<=")):
        if head.startswith(kind) and head[len(kind) :].lstrip().startswith(sign):
            value = head[len(kind) :].lstrip()[len(sign) :].strip()
            break
    else:
        raise _not_understood(text)
    options = {key.strip(): value.strip() for key, _, value in (p.partition("=") for p in rest)}
    if not set(options) <= _OPTIONS[kind] or len(options) < len(rest) or "" in options.values():
        raise _not_understood(text)
    if kind == "latency" and "file" not in options:
        raise InputError(
            "a latency needs measured times",
            where="--storm",
            got=text,
            expected=_FORMS,
            fix="add file=PATH, for instance file=benchmarks/results/storm_accuracy.json",
        )
    try:
        return Target(
            kind,
            float(value),
            steps=int(options["steps"]) if "steps" in options else None,
            policy=options.get("policy", DEFAULT_POLICY),
            file=Path(options["file"]) if "file" in options else None,
            batch=int(options.get("batch", "1")),
        )
    except ValueError as error:
        raise _not_understood(text) from error


def plan_for_target(text: str, variant: Variant, height: int, width: int) -> Choice:
    """Read a budget and make the plan that fits it.

    Raises:
        InputError: As ``parse_target``, ``plan_for_flops`` and ``plan_for_latency``.
    """
    target = parse_target(text)
    if target.file is not None:
        return plan_for_latency(
            variant, height, width, target.value, target.file, batch=target.batch
        )
    return plan_for_flops(
        variant, height, width, target.value, steps=target.steps, policy=target.policy
    )


def _not_understood(text: str) -> InputError:
    return InputError("the budget was not understood", where="--storm", got=text, expected=_FORMS)
