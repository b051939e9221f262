# SPDX-License-Identifier: Apache-2.0
"""The training loop: compiled, captured in a CUDA graph, and fitted to a time budget."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.data import Augmenter, Dataset, Split, normalise
from benchmarks.training.network import TrainingNetwork
from benchmarks.training.optimiser import Optimiser
from benchmarks.training.recipes import Recipe
from stormrt.errors import InputError, StormrtError
from stormrt.storm.variants import Variant
from stormrt.storm.vmamba import VMamba

_CHUNK = 8
"""Batches that are augmented together: a hundred small operations, once for all of them."""
_WARM_STEPS, _TIMED_STEPS = 4, 24
_EVALUATIONS = 10
"""How often, in a run, the averaged weights are tried on the test images, for the log alone: the
weights that are kept are always the last ones."""
_EVALUATION_SECONDS = 8.0
"""Kept back from the budget for the evaluations and for writing the results."""


@dataclass(frozen=True)
class Options:
    """How to run, apart from the recipe."""

    seed: int
    seconds: float | None
    """Budget of the run; None: all epochs of the recipe."""


@dataclass
class Result:
    """What a run made."""

    weights: dict[str, Tensor]
    """The averaged weights, FP32, on the CPU."""
    epochs: int
    complete: bool
    """Whether all steps were done; the budget can end a run before."""
    images_per_second: float
    seconds: float
    log: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch."""


class Trainer:
    """A model, its optimiser and its captured step, for runs from several seeds.

    Compiling and capturing take longer than many an epoch, and serve every seed.

    Args:
        variant: The model.
        data: On the device.
        recipe: All hyper-parameters.
        compiled: Compile the blocks (``torch.compile``).
        graphs: Replay steps as a CUDA graph; ignored without a GPU.
        say: Prints a line.
    """

    def __init__(
        self,
        variant: Variant,
        data: Dataset,
        recipe: Recipe,
        *,
        compiled: bool,
        graphs: bool,
        say: Callable[[str], None],
    ) -> None:
        self.variant, self.data, self.recipe, self.say = variant, data, recipe, say
        self.device = data.train.images.device
        if recipe.batch > len(data.train.labels):
            raise InputError(
                "the batch is larger than the training set",
                where="--batch",
                got=str(recipe.batch),
                expected=f"at most {len(data.train.labels)}",
            )
        cuda = self.device.type == "cuda"
        self.graphs = graphs and cuda
        self.model = VMamba(variant, len(data.classes)).to(self.device)
        self.network = TrainingNetwork(
            self.model,
            drop_path=recipe.drop_path,
            dtype=torch.bfloat16 if cuda else torch.float32,
            compiled=compiled,
        )
        self.named: dict[str, Tensor] = dict(self.model.named_parameters())
        self.optimiser = Optimiser(self.named, recipe)
        side = variant.image
        self.images = torch.zeros(
            recipe.batch, 3, side, side, device=self.device, dtype=self.network.dtype
        ).contiguous(memory_format=torch.channels_last)
        self.targets = torch.zeros(recipe.batch, len(data.classes), device=self.device)
        self.loss_sum = torch.zeros((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    # --- one step --------------------------------------------------------------------------------

    def _step(self) -> None:
        """Forward, backward, optimiser, on the static inputs."""
        for p in self.named.values():
            p.grad = None
        loss = F.cross_entropy(self.network(self.images, training=True), self.targets)
        loss.backward()
        self.loss_sum += loss.detach()
        self.optimiser.step()

    def prepare(self) -> float:
        """Compile, capture, and measure the throughput on steps that are then forgotten.

        Returns:
            Training images per second, augmentation included.
        """
        started = time.perf_counter()
        torch.manual_seed(0)
        self.optimiser.rate.fill_(1e-6)
        batches = self._batches(calm_from=math.inf)
        self._load(*next(batches))
        self._synchronise()
        # Steps are tried on the stream that they are captured on: gradients are accumulated on the
        # stream of the first forward pass.
        stream = torch.cuda.Stream() if self.graphs else None
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            for _ in range(_WARM_STEPS if self.device.type == "cuda" else 1):
                self._step()
        self._synchronise()
        self.say(f"compiled and warm after {time.perf_counter() - started:.1f} s")
        if stream is not None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self._step()
            self._synchronise()
            self.say(f"captured after {time.perf_counter() - started:.1f} s")
        steps = _TIMED_STEPS if self.device.type == "cuda" else 1
        for _ in range(_CHUNK if self.device.type == "cuda" else 0):
            self._run(*next(batches))
        self._synchronise()
        began = time.perf_counter()
        for _ in range(steps):
            self._run(*next(batches))
        self._synchronise()
        rate = steps * self.recipe.batch / (time.perf_counter() - began)
        self.say(f"throughput: {rate:.0f} images/s in training, batch {self.recipe.batch}")
        if self.device.type == "cuda":
            self.say(f"GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return rate

    def profile(self, steps: int = 4) -> None:
        """Print which kernels the time of a step goes to; without a graph, so that they show."""
        batches = self._batches(calm_from=math.inf)
        next(batches)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as record:
            for _ in range(steps):
                self._step()
            self._synchronise()
        rows = sorted(record.key_averages(), key=lambda r: -r.self_device_time_total)
        total = max(1.0, sum(row.self_device_time_total for row in rows))
        self.say(f"a step: {total / steps / 1000:.2f} ms of kernels")
        for row in rows[:40]:
            share = row.self_device_time_total / total
            each = row.self_device_time_total / max(1, row.count)
            calls = round(row.count / steps)
            self.say(f"{share:6.1%}  {calls:4d} x {each:8.1f} us  {row.key[:110]}")

    def _run(self, images: Tensor, targets: Tensor) -> None:
        self._load(images, targets)
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def _load(self, images: Tensor, targets: Tensor) -> None:
        self.images.copy_(images)
        self.targets.copy_(targets)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _batches(self, calm_from: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches without end; from batch ``calm_from`` on in the calm way."""
        train, size = self.data.train, self.recipe.batch
        per_epoch = len(train.labels) // size
        augment = Augmenter(
            self.recipe.augmentation, len(self.data.classes), self.device, torch.initial_seed()
        )
        number = 0
        while True:
            order = torch.randperm(len(train.labels), device=self.device)
            for start in range(0, per_epoch, _CHUNK):
                count = min(_CHUNK, per_epoch - start)
                chosen = order[start * size : (start + count) * size]
                images, targets = augment(
                    train.images[chosen], train.labels[chosen], calm=number >= calm_from
                )
                yield from zip(images.split(size), targets.split(size), strict=True)
                number += count

    # --- a run -----------------------------------------------------------------------------------

    def run(self, options: Options, rate: float) -> Result:
        """Train from a seed.

        Args:
            options: Seed and budget.
            rate: Images per second, from ``prepare``.

        Raises:
            StormrtError: The loss is no number any more.
        """
        recipe = self.recipe
        self._reset(options.seed)
        size = len(self.data.train.labels)
        per_epoch = size // recipe.batch
        epochs = recipe.epochs
        if options.seconds is not None:
            usable = max(options.seconds - _EVALUATION_SECONDS, 0.0)
            epochs = max(1, min(epochs, int(usable * rate / (per_epoch * recipe.batch))))
        total = epochs * per_epoch
        warm_up = max(1, round(recipe.warm_up * total))
        self.say(f"seed {options.seed}: {epochs} epochs of {per_epoch} steps")
        batches = self._batches(calm_from=round((1 - recipe.calm) * total))
        every = max(1, epochs // _EVALUATIONS)
        began, step, late = time.perf_counter(), 0, False
        log: list[dict[str, float]] = []
        for epoch in range(1, epochs + 1):
            self.loss_sum.zero_()
            first = step
            while step < epoch * per_epoch and not late:
                self.optimiser.rate.fill_(recipe.learning_rate * _schedule(step, warm_up, total))
                self._run(*next(batches))
                step += 1
                spent = time.perf_counter() - began
                late = options.seconds is not None and spent > options.seconds
            entry = {"epoch": epoch, "loss": float(self.loss_sum) / (step - first)}
            entry["seconds"] = time.perf_counter() - began
            if not math.isfinite(entry["loss"]):
                raise StormrtError(
                    "the training diverged",
                    where=f"epoch {epoch}",
                    got=f"loss {entry['loss']}",
                    fix="lower --lr, or try --optimiser adamw",
                )
            if epoch % every == 0 or epoch == epochs or late:
                entry["test_top1"] = self.evaluate()
                self.say(
                    f"  epoch {epoch:4d}  loss {entry['loss']:.4f}  "
                    f"test top-1 {entry['test_top1']:.4f}  {entry['seconds']:.1f} s"
                )
            log.append({key: round(value, 5) for key, value in entry.items()})
            if late:
                break
        if step < total:
            self.say(f"  the budget was spent at step {step} of {total}: stopped")
        seconds = time.perf_counter() - began
        names = zip(self.named, self.optimiser.average, strict=True)
        weights = {name: average.detach().cpu().clone() for name, average in names}
        return Result(weights, len(log), step == total, rate, seconds, log)

    def _reset(self, seed: int) -> None:
        torch.manual_seed(seed)
        fresh = VMamba(self.variant, len(self.data.classes))
        with torch.no_grad():
            for name, value in fresh.named_parameters():
                self.named[name].copy_(value)
        self.optimiser.reset()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Top-1 of the averaged weights on the test images, by the fast forward pass."""
        own = [p.detach().clone() for p in self.named.values()]
        parameters = list(self.named.values())
        torch._foreach_copy_(parameters, self.optimiser.average)
        test = self.data.test
        top1 = accuracy(lambda images: self.network(images, training=False), test)
        torch._foreach_copy_(parameters, own)
        return top1


def _schedule(step: int, warm_up: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero: a factor of the learning rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Any], split: Split, batch: int = 500) -> float:
    """Top-1 over a whole split.

    Args:
        network: Normalised images [B, 3, H, W] -> logits [B, classes].
        split: Images and labels on the network's device.
        batch: Images a call.
    """
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        logits = network(normalise(images.float() / 255.0))
        right += (logits.argmax(1) == labels).sum()
    return int(right) / len(split.labels)
