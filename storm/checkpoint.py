# SPDX-License-Identifier: Apache-2.0
"""Loading VMamba checkpoints: upstream's files, old and new, and safetensors, without executing."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.variants import VARIANTS, get_variant
from stormrt.storm.vmamba import VMamba

_WRAPPERS = ("model", "model_ema", "state_dict")
"""Keys under which training code stores the weights, tried in this order."""

_RENAMES = (
    (r"^module\.", ""),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
)
"""Names of older upstream code -> names of today's."""

_SHOWN = 6
"""How many keys of a kind a message lists."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights in a checkpoint file, under today's key names.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: the weights themselves, or a
            dictionary that holds them under ``model``, ``model_ema`` or ``state_dict``.

    Raises:
        InputError: The file is missing, damaged, holds code, or holds no weights, or what is larger
            than the file.
    """
    if not path.is_file():
        raise InputError(
            "the checkpoint does not exist" if not path.exists() else "not a checkpoint file",
            where=str(path),
            fix="check the path; upstream's files are on the releases page of MzeroMiko/VMamba",
        )
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        inner = raw.get(key)
        if isinstance(inner, Mapping):
            raw = inner
            break
    weights = {str(k): v for k, v in raw.items() if isinstance(v, Tensor)}
    odd = {k: _oddness(v) for k, v in weights.items()}
    named = [f"{k}: {reason}" for k, reason in odd.items() if reason is not None]
    if named:
        raise InputError(
            "the checkpoint has tensors that are no weights",
            where=str(path),
            got="\n            ".join(named[:_SHOWN]),
            expected="dense tensors of real numbers",
        )
    if not weights:
        raise InputError(
            "the checkpoint holds no weights",
            where=str(path),
            got=f"keys {', '.join(map(str, list(raw)[:_SHOWN])) or '(none)'}",
            expected=f"tensors, bare or under one of {', '.join(_WRAPPERS)}",
        )
    return {_modern_name(k): v for k, v in weights.items()}


def _oddness(tensor: Tensor) -> str | None:
    """What keeps a tensor from being a model's weight; None: nothing."""
    if tensor.is_meta:
        return "its values are missing"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "sparse, quantised or nested"
    if tensor.is_complex():
        return "complex"
    return None


def _modern_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


_RESERVES = re.compile(
    rb"c(?:builtins|__builtin__)\nbytearray\n"
    rb"|ctorch(?:\.\w+)*\n(?:\w+Tensor|UntypedStorage|TypedStorage)\n"
)
"""In a pickle: what only reserves memory, and weights have no use for."""


def _check_sizes(path: Path) -> None:
    """Refuse a file that would take more memory than it is worth, before PyTorch opens it.

    PyTorch stores weights as they are, in a zip archive or, as it did before 1.6 and still can,
    behind their pickles. What was packed can be a thousand times as large as the file; a number in
    a pickle can be anything.

    Raises:
        Exception: The file is such, or damaged; zipfile and pickletools raise many kinds.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        with path.open("rb", buffering=0) as raw, _Bounded(raw, size) as file:
            if _legacy_numbers(file) > size:
                raise ValueError("its weights would be larger than the file")
        with path.open("rb") as plain:
            pickles = [plain.read(min(size, _LEGACY_PICKLES))]
    else:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError("its entries are packed, and larger than the file")
            pickles = [archive.read(e) for e in entries if e.filename.endswith(".pkl")]
    if any(_RESERVES.search(code) for code in pickles):
        raise ValueError("it holds objects that are no weights")


_LEGACY_PICKLES = 64 << 20
"""The pickles of the older format are at the file's beginning, and no larger than this."""


class _Bounded(io.BufferedReader):
    """A file that reserves no memory for more bytes than it has left."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's own."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _legacy_numbers(file: _Bounded) -> int:
    """How many numbers all weights of the older format have, by its pickles.

    Those are a magic number, a version, facts of the machine, and the dictionary, in which the last
    whole number of each reference to weights is how many they are (``torch.serialization``).
    """
    total = 0
    for _ in range(4):
        last = 0
        for code, argument, _at in pickletools.genops(file):
            if isinstance(argument, int) and "PUT" not in code.name and "GET" not in code.name:
                last = argument
            elif code.name == "BINPERSID":
                total += max(0, last)
    return total


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        _check_sizes(path)
        if zipfile.is_zipfile(path):
            raw: object = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb", buffering=0) as bare, _Bounded(bare, path.stat().st_size) as file:
                raw = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler to any error
        raise _damaged(path, error) from error
    if not isinstance(raw, Mapping):
        raise InputError(
            "the checkpoint is not a dictionary", where=str(path), got=type(raw).__name__
        )
    return raw


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        "the checkpoint could not be read: it is cut off, damaged, or not a checkpoint",
        where=f"{path} ({path.stat().st_size} bytes)",
        got=reason[:200],
        expected="a safetensors file, or tensors saved by torch.save (no pickled objects)",
        fix="fetch the file again and compare its size and digest with the publisher's",
    )


def load_checkpoint(model: VMamba, path: str | Path) -> VMamba:
    """Load a checkpoint into a model, strictly and safely.

    Args:
        model: A model from ``build_vmamba``, of the checkpoint's variant and class count.
        path: See ``read_state_dict``.

    Returns:
        The same model.

    Raises:
        InputError: The file is bad, or its keys and shapes are not this model's; the message
            names them and the variant that would fit.
    """
    path = Path(path)
    weights = read_state_dict(path)
    own = model.state_dict()
    missing = [k for k in own if k not in weights]
    unexpected = [k for k in weights if k not in own]
    reshaped = [
        f"{k}: {list(weights[k].shape)} in the file, {list(own[k].shape)} in the model"
        for k in own
        if k in weights and not _same_shape(weights[k], own[k])
    ]
    if missing or unexpected or reshaped:
        problems = [
            f"{title}: {'; '.join(keys[:_SHOWN])}"
            + (f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
            for title, keys in (
                ("missing from the file", missing),
                ("not in the model", unexpected),
                ("other shape", reshaped),
            )
            if keys
        ]
        fits = fitting_variant(weights)
        if fits is None:
            fix = "no known variant fits this file"
        elif fits[0] == model.variant.name:
            fix = (
                f"the file has {fits[1]} classes: build_vmamba({fits[0]!r}, "
                f"num_classes={fits[1]}), or --classes {fits[1]}"
            )
        else:
            fix = f"this file fits {fits[0]!r} with {fits[1]} classes: use --model {fits[0]}"
        raise InputError(
            f"the checkpoint is not of {model.variant.name} with {model.num_classes} classes",
            where=str(path),
            got="\n            ".join(problems),
            fix=fix,
        )
    model.load_state_dict({k: weights[k].reshape(own[k].shape) for k in own})
    return model


def _same_shape(stored: Tensor, own: Tensor) -> bool:
    """Equal, or equal but for the trailing 1x1 of a convolution stored for a linear layer."""
    return stored.shape == own.shape or stored.shape == (*own.shape, 1, 1)


def fitting_variant(weights: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """The variant and class count whose keys and shapes a state dictionary has, if any."""
    head = weights.get("classifier.head.weight")
    if head is None or head.dim() != 2:
        return None
    for name in VARIANTS:
        with torch.device("meta"):
            own = VMamba(get_variant(name), head.shape[0]).state_dict()
        if own.keys() == weights.keys() and all(_same_shape(weights[k], own[k]) for k in own):
            return name, head.shape[0]
    return None
