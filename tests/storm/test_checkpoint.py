# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: every form that upstream published, and refusals that name what is wrong.

What can go wrong: a file that runs code, a damaged file that raises something of PyTorch's own, a
file of another variant that loads in part, names of older code that are not found.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from safetensors.torch import save_file
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.checkpoint import fitting_variant, load_checkpoint, read_state_dict
from stormrt.storm.variants import VARIANTS
from stormrt.storm.vmamba import VMamba, build_vmamba
from tests.helpers.models import SMALL, SMALL_VANILLA, lively, random_images
from tests.helpers.seeds import SEED

DEEPER = dataclasses.replace(SMALL, name="deeper", depths=(2, 1, 4, 1))


@pytest.fixture(autouse=True)
def _small_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in (SMALL, SMALL_VANILLA, DEEPER):
        monkeypatch.setitem(VARIANTS, variant.name, variant)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return lively(SMALL, SEED).state_dict()


def fresh() -> VMamba:
    return VMamba(SMALL, 5).eval()


def saved(folder: Path, content: object, *, name: str = "weights.pth", new: bool = True) -> Path:
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def refusal(path: Path, model: VMamba | None = None) -> str:
    """The message with which a file is refused; it always names the file."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(model or fresh(), path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_loads(path: Path, weights: dict[str, Tensor]) -> None:
    model = fresh()
    assert load_checkpoint(model, path) is model
    own = model.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[k], weights[k]) for k in own)


@pytest.mark.parametrize("wrapper", [None, "model", "model_ema", "state_dict"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy_format"])
def test_weights_load_bare_and_from_what_training_code_saves(
    tmp_path: Path, weights: dict[str, Tensor], wrapper: str | None, new: bool
) -> None:
    content = weights if wrapper is None else {wrapper: weights, "epoch": 7, "max_accuracy": 82.6}
    assert_loads(saved(tmp_path, content, new=new), weights)


def test_the_model_is_preferred_to_its_average(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    average = {k: v + 1 for k, v in weights.items()}
    assert_loads(saved(tmp_path, {"model_ema": average, "model": weights}), weights)


def test_safetensors_load(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "weights.safetensors")
    assert_loads(tmp_path / "weights.safetensors", weights)


def test_linear_weights_load_as_one_by_one_convolutions(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2|head)\.weight$")
    stored = {k: v[:, :, None, None] if linear.search(k) else v for k, v in weights.items()}
    assert sum(v.dim() == 4 for v in stored.values()) > sum(v.dim() == 4 for v in weights.values())
    assert_loads(saved(tmp_path, {"model": stored}), weights)
    model = fresh()
    model.load_state_dict(stored)  # PyTorch's own way takes them too
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_loaded_model_computes_what_the_saved_one_did(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    source = lively(SMALL, SEED)
    path = saved(tmp_path, source.state_dict())
    x = random_images(rng, 1, 40, 52)
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(fresh(), str(path))(x), source(x))


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data_parallel"])
def test_names_of_older_code_load(tmp_path: Path, prefix: str) -> None:
    model = lively(SMALL_VANILLA, SEED)
    today = model.state_dict()
    older = {}
    for key, value in today.items():
        for pattern, old in (
            (r"^classifier\.", ""),
            (r"^patch_embed\.0\.", "patch_embed.proj."),
            (r"^patch_embed\.2\.", "patch_embed.norm."),
            (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."),
            (r"(blocks\.\d+)\.op\.", r"\1.self_attention."),
        ):
            key = re.sub(pattern, old, key)
        older[prefix + key] = value
    assert not (set(older) - {k for k in older if "downsample" in k}) & set(today)
    loaded = load_checkpoint(VMamba(SMALL_VANILLA, 5), saved(tmp_path, {"model": older}))
    assert all(torch.equal(v, today[k]) for k, v in loaded.state_dict().items())


# --- files that are no checkpoints -------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pth")
    assert "not a checkpoint file" in refusal(tmp_path)


def test_a_truncated_file_is_refused_with_its_size(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    for new in (True, False):
        path = saved(tmp_path, {"model": weights}, new=new)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        message = refusal(path)
        assert "cut off" in message
        assert f"({len(whole) // 2} bytes)" in message


def test_truncated_safetensors_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"({size} bytes)" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"0.",
        b"\x80\x02.",
        b"\x80\x02}r.",
        b"\x80\x02}q\x00X",
        b"VMamba, 82.6 % top-1\n",
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        b"PK\x03\x04 an archive that is none",
        pickle.dumps({"a": 1}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.filterwarnings("ignore")  # PyTorch's about the protocols of damaged pickles
def test_a_damaged_file_is_read_or_refused_and_never_fails_otherwise(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    whole = []
    for new in (True, False):
        buffer = io.BytesIO()
        content = {"model": {"a": torch.zeros(3)}}
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        whole.append(buffer.getvalue())
    path = tmp_path / "weights.pth"
    for _ in range(150):
        data = bytearray(whole[rng.integers(2)])
        if rng.random() < 0.4:
            data = data[: rng.integers(len(data))]
        else:
            for at in rng.integers(len(data), size=6):
                data[at] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            read_state_dict(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017  # either outcome is right


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy_format"])
def test_a_file_that_holds_code_is_refused_and_not_run(
    tmp_path: Path, weights: dict[str, Tensor], new: bool
) -> None:
    mark = tmp_path / "it ran"
    content = {"model": weights, "args": Bomb(mark)}
    path = saved(tmp_path, content, new=new)
    assert "no pickled objects" in refusal(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, "(none)"),
        ({"epoch": 3, "name": "vmamba"}, "keys epoch, name"),
        ({"model": {}}, "(none)"),
        ({"model": {"epoch": 3}}, "keys epoch"),
    ],
)
def test_a_file_without_weights_is_refused_with_what_it_holds(
    tmp_path: Path, content: object, named: str
) -> None:
    message = refusal(saved(tmp_path, content))
    assert "holds no weights" in message
    assert named in message


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3, None], ids=repr)
def test_a_file_that_holds_no_dictionary_is_refused(tmp_path: Path, content: object) -> None:
    message = refusal(saved(tmp_path, content))
    assert "not a dictionary" in message
    assert type(content).__name__ in message


# --- checkpoints of other models ---------------------------------------------------------------


def test_a_checkpoint_of_another_variant_is_refused_naming_the_variant_that_fits(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = saved(tmp_path, {"model": weights})
    for model in (VMamba(DEEPER, 5), VMamba(SMALL_VANILLA, 5)):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        message = refusal(path, model)
        assert f"is not of {model.variant.name} with 5 classes" in message
        assert "this file fits 'small' with 5 classes: use --model small" in message
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vanilla_vmamba_base"])
def test_published_variants_are_recognised_by_their_weights(name: str) -> None:
    with torch.device("meta"):
        assert fitting_variant(build_vmamba(name, 21).state_dict()) == (name, 21)


def test_another_class_count_is_refused_with_the_call_that_would_do(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    message = refusal(saved(tmp_path, weights), VMamba(SMALL, 1000))
    assert "the file has 5 classes: build_vmamba('small', num_classes=5)" in message
    assert "classifier.head.bias: [5] in the file, [1000] in the model" in message


def test_missing_and_unexpected_keys_are_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    changed = dict(weights)
    del changed["layers.2.blocks.1.op.Ds"]
    changed["layers.2.blocks.1.op.extra"] = torch.zeros(1)
    message = refusal(saved(tmp_path, changed))
    assert "missing from the file: layers.2.blocks.1.op.Ds" in message
    assert "not in the model: layers.2.blocks.1.op.extra" in message
    assert "no known variant fits this file" in message


def test_a_weight_of_another_shape_is_refused_even_if_it_has_as_many_values(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    key = "layers.0.blocks.0.op.in_proj.weight"
    for shape in ((4, 16), (64,), (8, 8, 1)):
        changed = weights | {key: weights[key].reshape(shape)}
        message = refusal(saved(tmp_path, changed))
        assert f"{key}: {list(shape)} in the file, [8, 8] in the model" in message


def test_a_long_list_of_keys_is_cut_short_with_a_count(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, {f"fc{i}.weight": torch.zeros(1) for i in range(9)}))
    assert re.search(r"not in the model: .*fc5\.weight; and 3 more", message)
    assert "fc6.weight" not in message
