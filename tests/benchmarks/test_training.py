# SPDX-License-Identifier: Apache-2.0
"""Training of the demo models: gradients, data, optimiser, and the whole script in miniature."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks import train_demo_models
from benchmarks.training import check, loop, operators
from benchmarks.training.data import Augmenter, Split, load, normalise
from benchmarks.training.loop import Trainer, accuracy
from benchmarks.training.network import TrainingNetwork
from benchmarks.training.optimiser import Optimiser, orthogonalised
from benchmarks.training.recipes import RECIPES, Augmentation, Recipe
from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d.reference import visiting_order
from stormrt.storm.checkpoint import load_checkpoint
from stormrt.storm.variants import VARIANTS, get_variant
from stormrt.storm.vmamba import build_vmamba
from tests.helpers.models import SMALL, SMALL_VANILLA, lively, random_images
from tests.helpers.scans import relative_l2
from tests.helpers.seeds import SEED, generator

ROOT = Path(__file__).resolve().parents[2]
CIFAR = "vmamba_nano_cifar10"
AUGMENTATION = RECIPES[CIFAR].augmentation


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    torch.manual_seed(SEED)
    return generator(request.node.name)


# --- scan and convolution ----------------------------------------------------------------------


def obvious_scan(x: Tensor, p: Tensor, a: Tensor, d: Tensor, dt_bias: Tensor) -> Tensor:
    """One position after the other, in FP64, differentiable by PyTorch alone."""
    x, p, a, d, dt_bias = (t.double() for t in (x, p, a, d, dt_bias))
    batch, height, width, channels = x.shape
    total = torch.zeros_like(x)
    for k in range(4):
        own = slice(k * channels, (k + 1) * channels)
        h = torch.zeros(batch, channels, dtype=torch.float64)
        ys = {}
        for row, col in visiting_order(k, height, width):
            u, q = x[:, row, col], p[:, row, col]
            delta = F.softplus(q[:, own] + dt_bias[own])
            b, c = q[:, 4 * channels + k, None], q[:, 4 * channels + 4 + k, None]
            h = torch.exp(delta * a[own]) * h + delta * b * u
            ys[row, col] = c * h + d[own] * u
        rows = [torch.stack([ys[r, c] for c in range(width)], 1) for r in range(height)]
        total = total + torch.stack(rows, 1)
    return total


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 6, 3), (1, 4, 4, 8)], ids=str)
def test_the_scan_and_its_gradients_are_those_of_the_recurrence(
    rng: np.random.Generator, shape: tuple[int, int, int, int]
) -> None:
    operands = check.scan_operands(shape, torch.float32, "cpu")
    assert max(check.errors(operators.scan, obvious_scan, operands)) < 1e-5
    assert max(check.errors(check.scan_in_double, obvious_scan, operands)) < 1e-12


def test_the_convolution_and_its_gradients_are_pytorchs(rng: np.random.Generator) -> None:
    operands = (torch.randn(2, 4, 5, 6), torch.randn(6, 1, 3, 3))
    assert max(check.errors(operators.conv_silu, check.conv_in_double, operands)) < 1e-5


def test_tritons_kernels_agree_with_fp64_in_tritons_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install triton==3.6.0 to run its interpreter")
    program = (
        "from benchmarks.training import check\n"
        "check._SHAPES = ((1, 4, 5, 24), (2, 6, 6, 16), (1, 2, 2, 40))\n"
        "raise SystemExit(0 if check.check('cpu') else 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 6


@pytest.mark.gpu
def test_tritons_kernels_agree_with_fp64_on_a_gpu() -> None:
    if not torch.cuda.is_available() or not operators.HAS_TRITON:
        pytest.skip("no CUDA GPU, or no Triton")
    assert check.check("cuda")


def test_the_check_of_the_kernels_sees_a_wrong_gradient(rng: np.random.Generator) -> None:
    def wrong(x: Tensor, weight: Tensor) -> Tensor:
        y = operators.conv_silu(x, weight)
        return y + 0.1 * (x - x.detach())  # the right output

    operands = (torch.randn(2, 4, 5, 6), torch.randn(6, 1, 3, 3))
    output, gradient, _ = check.errors(wrong, check.conv_in_double, operands)
    assert output < 1e-5
    assert gradient > 1e-2


# --- network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [4, 2])
def test_the_training_network_is_the_model_and_so_are_its_gradients(
    rng: np.random.Generator, patch: int
) -> None:
    model = lively(dataclasses.replace(SMALL, patch=patch), SEED)
    network = TrainingNetwork(model, drop_path=0.0, dtype=torch.float32)
    images = random_images(rng, 3, 40, 33)
    results = []
    for logits in (model(images), network(images, training=True)):
        grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results.append((logits, grads))
    (want, want_grads), (got, got_grads) = results
    assert relative_l2(got, want) < 1e-5
    for name, g, w in zip(dict(model.named_parameters()), got_grads, want_grads, strict=True):
        assert relative_l2(g, w) < 1e-3, name
    assert relative_l2(network(images, training=False), want) < 1e-5


def test_stochastic_depth_leaves_branches_out_while_training_only(rng: np.random.Generator) -> None:
    model = lively(SMALL, SEED)
    network = TrainingNetwork(model, drop_path=0.5, dtype=torch.float32)
    images = random_images(rng, 2, 32, 32)
    dense = model(images)
    assert relative_l2(network(images, training=False), dense) < 1e-5
    drawn = [network(images, training=True) for _ in range(4)]
    assert any(relative_l2(logits, dense) > 1e-3 for logits in drawn)


def test_a_model_of_another_kind_is_refused() -> None:
    model = lively(SMALL_VANILLA, SEED)
    with pytest.raises(InputError, match="cannot be trained here"):
        TrainingNetwork(model, drop_path=0.0, dtype=torch.float32)


# --- optimiser ---------------------------------------------------------------------------------


def recipe(**changes: object) -> Recipe:
    return dataclasses.replace(RECIPES[CIFAR], **changes)


def test_the_flat_adamw_steps_as_pytorchs_does(rng: np.random.Generator) -> None:
    names = {"a.weight": (5, 3), "a.bias": (5,), "op.A_logs": (8, 1), "op.dt_projs_bias": (4, 2)}
    ours = {n: torch.randn(s).requires_grad_() for n, s in names.items()}
    theirs = {n: p.detach().clone().requires_grad_() for n, p in ours.items()}
    chosen = recipe(optimiser="adamw", weight_decay=0.3)
    optimiser = Optimiser(ours, chosen)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["a.weight"]], "weight_decay": 0.3},
            {"params": [p for n, p in theirs.items() if n != "a.weight"], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    for step in range(6):
        for name, p in ours.items():
            p.grad = torch.randn_like(p) * 0.1
            theirs[name].grad = p.grad.clone()
        rate = 0.02 / (step + 1)
        optimiser.rate.fill_(rate)
        for group in reference.param_groups:
            group["lr"] = rate
        optimiser.step()
        reference.step()
    for name, p in ours.items():
        assert relative_l2(p, theirs[name]) < 1e-5, name


def test_a_large_gradient_is_clipped() -> None:
    weights = {"w": torch.zeros(4, 4).requires_grad_()}
    optimiser = Optimiser(weights, recipe(optimiser="adamw"))
    weights["w"].grad = torch.full((4, 4), 1e6)
    optimiser.step()
    assert float(weights["w"].grad.norm()) == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 24)], ids=str)
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_scales(
    rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    matrices = torch.randn(shape)
    left, scales, right = torch.linalg.svd(matrices, full_matrices=False)
    got = left.mT @ orthogonalised(matrices) @ right.mT
    kept = got.diagonal(dim1=1, dim2=2)
    large = scales > 0.2 * scales.amax(1, keepdim=True)
    assert (kept[large] > 0.5).all()
    assert (kept < 1.4).all()
    assert (got - torch.diag_embed(kept)).abs().max() < 1e-3


def test_muon_steps_every_matrix_as_if_it_were_alone(rng: np.random.Generator) -> None:
    shapes = {"fc1.weight": (12, 6), "fc2.weight": (6, 12), "downsample.1.weight": (4, 2, 3, 3),
              "a.in_proj.weight": (2, 2), "a.bias": (2,)}  # fmt: skip
    ours = {n: torch.randn(s).requires_grad_() for n, s in shapes.items()}
    before = {n: p.detach().clone() for n, p in ours.items()}
    optimiser = Optimiser(ours, recipe(weight_decay=0.25))
    assert len(optimiser.buckets) == 2
    assert len(optimiser.rest) == 1
    optimiser.rate.fill_(0.5)
    for p in ours.values():
        p.grad = torch.randn_like(p) * 0.1
    optimiser.step()
    for name, p in list(ours.items())[:-1]:
        grad = p.grad.flatten(1)
        tall = grad.shape[0] > grad.shape[1]
        grad = grad.mT if tall else grad
        alone = orthogonalised((grad * (0.05 + 0.05 * 0.95))[None])[0]
        alone = (alone.mT if tall else alone).reshape(p.shape)
        want = before[name] * (1 - 0.5 * 0.25) - 0.5 * 0.2 * grad.shape[1] ** 0.5 * alone
        assert relative_l2(p, want) < 1e-4, name


def test_muon_moves_the_matrices_of_blocks_and_the_convolutions_between_stages() -> None:
    model = lively(SMALL, SEED)
    named = dict(model.named_parameters())
    optimiser = Optimiser(named, recipe())
    moved = {id(p) for bucket in optimiser.buckets for p in bucket.parameters}
    by_muon = {n for n, p in named.items() if id(p) in moved}
    assert "layers.0.blocks.0.mlp.fc1.weight" in by_muon
    assert "layers.0.downsample.1.weight" in by_muon
    assert not any("proj_weight" in n or "patch_embed" in n or "head" in n for n in by_muon)
    assert len(by_muon) + len(optimiser.rest) == len(named)


def test_the_average_begins_as_a_plain_mean_and_then_forgets() -> None:
    weight = torch.zeros(1, 1).requires_grad_()
    optimiser = Optimiser({"w": weight}, recipe(optimiser="adamw", ema=0.75))
    values = []
    for value in (3.0, 5.0, 10.0, 2.0, 8.0):
        weight.grad = torch.zeros(1, 1)
        weight.data.fill_(value)
        optimiser.step()
        values.append(value)
    mean = sum(values[:4]) / 4
    assert float(optimiser.average[0]) == pytest.approx(0.75 * mean + 0.25 * 8.0)
    optimiser.reset()
    assert float(optimiser.average[0]) == 8.0


# --- data --------------------------------------------------------------------------------------


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, lossless=True)
    return file.getvalue()


def write_npz(path: Path, rng: np.random.Generator, side: int = 32, **changes: object) -> Path:
    """Images that are dark or bright, by their class."""
    parts: dict[str, object] = {"classes": np.array(["dark", "bright"])}
    for split, count in (("train", 64), ("test", 24)):
        labels = np.arange(count) % 2
        files = [
            encoded(rng.integers(90 * y, 90 * y + 120, (side, side, 3)).astype(np.uint8), kind)
            for y, kind in zip(labels, ["PNG", "WEBP"] * count, strict=False)
        ]
        parts[f"{split}_images"] = np.frombuffer(b"".join(files), np.uint8)
        parts[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        parts[f"{split}_labels"] = labels.astype(np.uint8)
    parts |= changes
    np.savez(path, **{k: v for k, v in parts.items() if v is not None})
    return path


def test_encoded_images_are_read_in_their_order(tmp_path: Path, rng: np.random.Generator) -> None:
    data = load(write_npz(tmp_path / "data.npz", rng), 32)
    assert data.classes == ("dark", "bright")
    assert data.train.images.shape == (64, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    bright = data.train.images.float().mean((1, 2, 3)) > 105
    assert torch.equal(bright.long(), data.train.labels)


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({}, 64, "another size than the model's input"),
        ({"test_labels": None}, 32, "lack a part"),
        ({"train_labels": np.full(64, 2)}, 32, "a label is no class"),
        ({"test_labels": np.zeros(3)}, 32, "offsets do not fit"),
        ({"test_images": np.zeros(24, np.uint8), "test_offsets": np.arange(25)}, 32,
         "could not be decoded"),
    ],
    ids=["size", "part", "label", "offsets", "image"],
)  # fmt: skip
def test_bad_data_are_refused(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, object], side: int, message: str
) -> None:
    path = write_npz(tmp_path / "data.npz", rng, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load(path, side)
    assert str(path) in str(caught.value)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (None, b"", b"PK\x03\x04 cut off", array.getvalue()):
        path = tmp_path / "data.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="could not be read"):
            load(path, 32)


def augmenter(**changes: object) -> Augmenter:
    nothing: dict[str, object] = {
        "plain": 1.0, "shift": 0, "coloured": 0.0, "gain": 0.0, "sharpness": 0.0, "grey": 0.0,
        "solarised": 0.0, "erased": 0.0, "mixup": 0.0, "cutmix": 0.0,
    }  # fmt: skip
    how: Augmentation = dataclasses.replace(AUGMENTATION, **(nothing | changes))
    return Augmenter(how, 10, torch.device("cpu"), 0)


def a_batch(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(rng.integers(0, 256, (12, 3, 32, 32)).astype(np.uint8))
    return images, torch.from_numpy(rng.integers(0, 10, 12))


def test_without_strength_images_are_at_most_mirrored(rng: np.random.Generator) -> None:
    images, labels = a_batch(rng)
    got, targets = augmenter()(images, labels)
    plain = normalise(images.float() / 255)
    for g, p in zip(got, plain, strict=True):
        assert min((g - p).abs().max(), (g - p.flip(2)).abs().max()) < 1e-3
    assert torch.equal(targets.argmax(1), labels)
    assert targets.sum(1).allclose(torch.ones(12))


def test_a_shift_is_by_whole_pixels(rng: np.random.Generator) -> None:
    images, labels = a_batch(rng)
    got, _ = augmenter(shift=3)(images, labels)
    plain = normalise(images.float() / 255)
    for g, p in zip(got, plain, strict=True):
        inner = g[:, 4:-4, 4:-4]
        shifted = [
            q[:, 4 + i : 28 + i, 4 + j : 28 + j]
            for q in (p, p.flip(2))
            for i in range(-3, 4)
            for j in range(-3, 4)
        ]
        assert min(float((inner - s).abs().max()) for s in shifted) < 1e-3


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_targets_are_mixed_in_the_shares_of_the_images(rng: np.random.Generator, how: str) -> None:
    _, labels = a_batch(rng)
    # Black and white images, alternating: the mean of a mixture tells the shares.
    images = (torch.arange(12) % 2 * 255).to(torch.uint8).view(12, 1, 1, 1).expand(12, 3, 32, 32)
    labels = torch.arange(12) % 2
    mix = augmenter(**{how: 1.0, "label_smoothing": 0.0})
    got, targets = mix(images, labels)
    black, white = (normalise(torch.full((1, 3, 1, 1), v)) for v in (0.0, 1.0))
    share = ((got - black) / (white - black)).mean((1, 2, 3))
    assert torch.allclose(share, targets[:, 1], atol=1e-4)
    assert ((share > 0.01) & (share < 0.99)).any()
    calm, targets = mix(images, labels, calm=True)
    assert torch.equal(targets[:, 1], labels.float())
    assert (calm.amax((1, 2, 3)) - calm.amin((1, 2, 3)) < 1).all()


@pytest.mark.parametrize("model", RECIPES)
def test_each_recipe_gives_finite_images_and_whole_targets(
    rng: np.random.Generator, model: str
) -> None:
    augment = Augmenter(RECIPES[model].augmentation, 10, torch.device("cpu"), 0)
    for calm in (False, True):
        images, labels = a_batch(rng)
        got, targets = augment(images, labels, calm=calm)
        assert got.shape == images.shape
        assert got.isfinite().all()
        assert got.abs().max() < 4
        assert targets.sum(1).allclose(torch.ones(12))


# --- the script --------------------------------------------------------------------------------


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CIFAR-10 model and recipe, so small that a few steps on a CPU are quick."""
    small = dataclasses.replace(get_variant(CIFAR), dims=(8, 16, 32, 64), depths=(2, 1, 1, 1))
    monkeypatch.setitem(VARIANTS, CIFAR, small)
    quick = recipe(batch=16, epochs=6, learning_rate=1e-2, drop_path=0.0, ema=0.5)
    monkeypatch.setitem(RECIPES, CIFAR, quick)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train_demo_models.main()


@pytest.mark.usefixtures("small_cifar")
def test_a_run_learns_and_writes_weights_that_the_project_loads(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "data.npz", rng)
    seeds = ("--seed", 3, 4)
    run(monkeypatch, "--model", CIFAR, "--data", path, "--out", tmp_path / "out", *seeds)
    digests = set()
    for seed in (3, 4):
        folder = tmp_path / "out" / f"seed{seed}"
        told = json.loads((folder / f"{CIFAR}.json").read_text())
        digests.add(told["sha256"])
        assert told["classes"] == ["dark", "bright"]
        assert (told["input"], told["patch"], told["seed"]) == ([3, 32, 32], 2, seed)
        assert told["complete"]
        assert told["recipe"]["batch"] == 16
        losses = [entry["loss"] for entry in told["log"]]
        assert len(losses) == told["epochs"] == 6
        assert losses[-1] < losses[0]
        model = load_checkpoint(build_vmamba(CIFAR, 2), folder / f"{CIFAR}.safetensors").freeze()
        data = load(path, 32)
        assert accuracy(model, data.test) == told["test_top1"]
        assert told["test_top1"] > 0.8
    assert len(digests) == 2


@pytest.mark.usefixtures("small_cifar")
def test_a_budget_cuts_the_epochs(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "data.npz", rng)
    given = ("--model", CIFAR, "--data", path, "--out", tmp_path, "--epochs", 100000)
    run(monkeypatch, *given, "--seconds", 1)
    told = json.loads((tmp_path / f"{CIFAR}.json").read_text())
    assert told["epochs"] == len(told["log"]) == 1
    assert told["recipe"]["epochs"] == 100000


@pytest.mark.usefixtures("small_cifar")
def test_a_run_that_is_slower_than_foreseen_stops_when_its_budget_is_spent(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "data.npz", rng)
    monkeypatch.setattr(Trainer, "prepare", lambda _: 1e9)
    monkeypatch.setattr(loop, "_EVALUATION_SECONDS", 0.0)
    given = ("--model", CIFAR, "--data", path, "--out", tmp_path, "--epochs", 100000)
    run(monkeypatch, *given, "--seconds", time.perf_counter() - train_demo_models._STARTED + 1)
    told = json.loads((tmp_path / f"{CIFAR}.json").read_text())
    assert not told["complete"]
    assert told["epochs"] == len(told["log"]) < 100000
    assert told["seconds"] < 10
    assert "test_top1" in told["log"][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "vmamba_tiny_s1l8"), "no recipe for this model"),
        (("--model", CIFAR, "--data", "missing.npz"), "could not be read"),
        (("--model", CIFAR, "--lr", "0"), "--lr"),
        (("--model", CIFAR, "--epochs", "0"), "--epochs"),
        (("--model", CIFAR, "--seconds", "-1"), "--seconds"),
        (("--model", CIFAR, "--batch", "65"), "--batch"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    path = write_npz(tmp_path / "data.npz", rng)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--data", path, "--out", tmp_path / "out", *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_accuracy_counts_every_image() -> None:
    images = torch.zeros(7, 3, 32, 32, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 1])

    def network(batch: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(batch), 2)

    always_one: Callable[[Tensor], Tensor] = network
    assert accuracy(always_one, Split(images, labels), batch=3) == 5 / 7
