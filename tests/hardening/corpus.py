# SPDX-License-Identifier: Apache-2.0
"""Good files of every kind that stormrt reads, and files made to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.storm.plan import keep_plan
from stormrt.storm.variants import VARIANTS
from tests.hardening.mutations import rezipped, zip_bomb
from tests.pipeline import support
from tests.pipeline.support import CLASSES, ROOT, SMALL

HEIGHT, WIDTH = 32, 48
BOMB_BYTES = 3 << 30
"""More than a reader may take."""
RAN = "STORMRT_FUZZ_CODE_RAN"
"""Set in the environment by a pickle that was executed."""


@dataclass(frozen=True)
class Corpus:
    """Contents by the reader that they are for."""

    bundle: Path
    manifests: list[bytes]
    reports: list[bytes]
    archives: list[bytes]
    records: list[bytes]
    recipes: list[bytes]
    torch_files: list[bytes]
    torch_bombs: list[bytes]
    safetensors: list[bytes]
    cards: list[bytes]
    graphs: list[bytes]
    tables: list[bytes]
    plans: list[bytes]
    measured: list[bytes]
    data_sets: list[bytes]
    goldens: list[bytes]
    npz_bombs: list[bytes]
    images: list[bytes]
    image_bombs: list[bytes]


def make_corpus(folder: Path) -> Corpus:
    """Make one of everything. Takes seconds: a small model is exported."""
    bundle = _bundle(folder)
    manifest = (bundle / "manifest.json").read_bytes()
    with_engine = json.loads(manifest)
    file = {"name": "engine.plan", "sha256": "0" * 64, "size_bytes": 7}
    with_engine["engine"] = {
        "file": file,
        "runtime": "tensorrt",
        "runtime_version": "10.3.0",
        "sm": 87,
        "plugin_libraries": [{**file, "name": "libstormrt_plugins.so"}],
    }
    with_engine["files"].append(file)
    (bundle / "plugins").mkdir()
    (bundle / "plugins" / "libstormrt_plugins.so").write_bytes(b"library")
    torch_files = _torch_files()
    images = _images()
    return Corpus(
        bundle=bundle,
        manifests=[manifest, json.dumps(with_engine).encode()],
        reports=[(bundle / "report.json").read_bytes(), b'{"kind": "device"}'],
        archives=_archives(bundle),
        records=[p.read_bytes() for p in sorted((bundle / ".stormrt").glob("*.json"))],
        recipes=[
            (ROOT / "targets" / f"{name}.toml").read_bytes()
            for name in ("t4", "orin-nano-8g", "rtx-4090")
        ],
        torch_files=torch_files,
        torch_bombs=_torch_bombs(torch_files[0]),
        safetensors=_safetensors(),
        cards=[b'{"classes": ["a", "b", "c"], "sha256": null}', b"{}"],
        graphs=[
            (bundle / "model.onnx").read_bytes(),
            (bundle / ".stormrt" / "native.onnx").read_bytes(),
        ],
        tables=[_table(bundle)],
        plans=_plans(),
        measured=[_measured()],
        data_sets=[_data_set(images, np.savez), _data_set(images, np.savez_compressed)],
        goldens=[(bundle / "golden.npz").read_bytes(), _golden()],
        npz_bombs=_npz_bombs(),
        images=images,
        image_bombs=_image_bombs(),
    )


def _bundle(folder: Path) -> Path:
    from stormrt.pipeline.build import BuildRequest, build

    photographs = support.make_photographs(folder / "photographs")
    out = folder / "bundle"
    build(
        BuildRequest(
            model=SMALL,
            target="orin-nano-8g",
            out=out,
            num_classes=CLASSES,
            storm="keep=0.5,stage=2",
            height=HEIGHT,
            width=WIDTH,
            photographs=photographs,
        )
    )
    return out


def _archives(bundle: Path) -> list[bytes]:
    """The bundle packed, and archives that would write elsewhere or without an end."""
    names = ["manifest.json", "golden.npz", "report.json"]

    def packed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for info, data in entries:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return file.getvalue()

    def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    good = [(entry(f"b/{name}"), (bundle / name).read_bytes()) for name in names]
    evil = [
        entry("../out"),
        entry("/tmp/stormrt-fuzz-out"),
        entry("b/link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("b/link", tarfile.SYMTYPE, ".."),
        entry("b/hard", tarfile.LNKTYPE, "../../etc/passwd"),
        entry("b/pipe", tarfile.FIFOTYPE),
        entry("b/zero", tarfile.CHRTYPE),
        entry("b/" + "x" * 300),
        entry("b/a\0b"),
        entry("."),
    ]
    made = [packed(good), *(packed([*good, (info, b"")]) for info in evil)]
    link = (entry("b/l", tarfile.SYMTYPE, ".."), b"")
    made.append(packed([*good, link, (entry("b/l/../../out"), b"x")]))
    for name in ("b/x", "../out", "/tmp/stormrt-fuzz-out", "C:\\x", "b/" + "y" * 300):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for info, data in good:
                archive.writestr(info.name, data)
            archive.writestr(name, b"x")
        made.append(file.getvalue())
    others = {info.name: data for info, data in good}
    made.append(zip_bomb("b/bomb", b"", BOMB_BYTES, others))
    return made


def small_model():
    """The model that the checkpoints are of."""
    from stormrt.storm import build_vmamba

    return build_vmamba(SMALL, CLASSES)


def _torch_files() -> list[bytes]:
    import torch

    state = small_model().state_dict()
    key = next(iter(state))
    made = []
    for value, legacy in (
        ({"model": state, "epoch": 3}, False),
        (state, True),
        ({"model": {**state, key: state[key].to(torch.complex64)}}, False),
        ({"model": {**state, key: state[key].to(torch.int64)}}, False),
        ({"model": {**state, key: state[key].to(torch.bool)}}, False),
        ({"model": {**state, key: state[key].to("meta")}}, False),
        ({"model": {**state, key: state[key].to_sparse()}}, False),
        ({"model": {**state, key: state[key] * float("nan")}}, False),
        ({"model": {**state, key: torch.zeros(1).expand(10**5, 10**5)}}, False),
        ({"model": {**state, 7: torch.zeros(1)}}, False),
        ({"model": {**state, key: torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8)}}, 0),
        ({"model": [1, 2]}, False),
        ([state], False),
        (torch.zeros(3), False),
    ):
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=not legacy)
        made.append(file.getvalue())
    return made


class _Executed:
    def __reduce__(self) -> tuple[object, ...]:
        return os.putenv, (RAN, "1")


class _Reserved:
    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (BOMB_BYTES,)


def _torch_bombs(good: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        names = archive.namelist()
        entries = {name: archive.read(name) for name in names}
    code = next(name for name in names if name.endswith("data.pkl"))
    data = next(name for name in names if name.endswith("data/0"))
    rest = {name: entry for name, entry in entries.items() if name != data}
    deep = b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."
    doubling = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i]) + (b"h" + bytes([i - 1]) + b"a") * 2 for i in range(1, 60)
    )
    pickles = [
        pickle.dumps({"model": _Executed()}, 2),
        pickle.dumps({"model": _Reserved()}, 2),
        pickle.dumps(_Executed()),
        deep,
        doubling + b".",
        b"\x80\x02X\xff\xff\xff\x7f",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"\x80\x02r\xff\xff\xff\x7f.",
    ]
    zipped = [rezipped(good, {code: content}, zipfile.ZIP_STORED) for content in pickles]
    return [*zipped, *pickles, zip_bomb(data, entries[data], BOMB_BYTES, rest)]


def _safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    state = small_model().state_dict()
    key = next(iter(state))
    good = save({k: v.clone() for k, v in state.items()})
    kinds = [
        save({**{k: v.clone() for k, v in state.items()}, key: state[key].to(dtype)})
        for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn, torch.bfloat16)
    ]

    def header(value: object) -> bytes:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text

    huge = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}
    long = {"dtype": "F32", "shape": [BOMB_BYTES], "data_offsets": [0, 4 * BOMB_BYTES]}
    bad = [
        header({"a": huge}),
        header({"a": long}),
        header({"a": {"dtype": "F32", "shape": [], "data_offsets": [4, 0]}}),
        header(b"{" * 10_000),
        struct.pack("<Q", 2**63) + b"{}",
    ]
    return [good, *kinds, *bad]


def _table(bundle: Path) -> bytes:
    from stormrt.calibration.table import CalibrationImage, CalibrationTable, TensorRange
    from stormrt.pipeline.schema import Manifest, ToolVersion

    manifest = Manifest.read(bundle / "manifest.json")
    ranges = {
        name: TensorRange(amax=1.5, largest=2.0, mean=(0.0, 0.25))
        for name in ("images", "patch_embed.0")
    }
    table = CalibrationTable(
        graph_sha256="0" * 64,
        model=manifest.model,
        plan=manifest.model.plan.describe(),
        observer="mse",
        smoothing={"patch_embed.0": (1.0, 2.0)},
        tensors=ranges,
        images=(CalibrationImage(name="a.png", sha256="1" * 64),),
        skipped=(),
        tools=(ToolVersion(name="torch", version="2"),),
    )
    return table.to_json().encode()


def _plans() -> list[bytes]:
    variant = VARIANTS[SMALL]
    one = keep_plan(variant, 64, 48, 0.5, stage=2, block=1).to_json()
    full = {
        "reductions": [
            {
                "stage": 0,
                "block": 0,
                "height": 4,
                "width": 3,
                "host": "feature_norm",
                "unit": "line",
                "mode": "merge",
                "restore": "stage",
                "rows": [0, 1, 2, 15],
                "cols": [0, 5, 6],
                "weights": "distance",
                "dt_grows": True,
            },
            {"stage": 2, "block": 1, "height": 2, "width": 2, "host": "step_size"},
        ]
    }
    many = {"reductions": full["reductions"] * 3_000}
    return [one.encode(), json.dumps(full).encode(), json.dumps(many).encode()]


def _measured() -> bytes:
    rows = [
        {"model": SMALL, "size": [64, 48], "batch": 1, "ms": ms, "plan": plan}
        for ms, plan in (
            (3.0, {"reductions": []}),
            (2.0, "keep=0.75,stage=2"),
            (1.0, "keep=0.25,stage=2"),
        )
    ]
    return json.dumps({"latency": rows}).encode()


def _encoded(mode: str, size: tuple[int, int], kind: str, seed: int, **options: object) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(seed)
    width, height = size
    shapes = {"L": (), "1": (), "P": (), "I;16": (), "F": (), "LA": (2,), "RGB": (3,)}
    channels = shapes.get(mode, (4,))
    pixels = rng.integers(0, 256, (height, width, *channels))
    if mode in ("1", "P"):
        image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    elif mode == "I;16":
        image = Image.fromarray((pixels * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(pixels.astype(np.float32))
    elif mode in ("CMYK", "LA"):
        image = Image.frombytes(mode, size, pixels.astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(pixels.astype(np.uint8))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _images() -> list[bytes]:
    kinds = [
        ("RGB", (60, 50), "PNG", {}),
        ("RGB", (60, 50), "JPEG", {}),
        ("RGB", (60, 50), "JPEG", {"progressive": True}),
        ("RGB", (60, 50), "WEBP", {}),
        ("RGB", (60, 50), "BMP", {}),
        ("RGB", (60, 50), "TIFF", {}),
        ("RGB", (60, 50), "TIFF", {"compression": "tiff_lzw"}),
        ("RGBA", (60, 50), "PNG", {}),
        ("RGBA", (60, 50), "WEBP", {"lossless": True}),
        ("L", (1, 1), "PNG", {}),
        ("RGB", (1, 1), "JPEG", {}),
        ("1", (1, 70), "PNG", {}),
        ("P", (60, 50), "PNG", {}),
        ("LA", (60, 50), "PNG", {}),
        ("I;16", (60, 50), "PNG", {}),
        ("I;16", (60, 50), "TIFF", {}),
        ("F", (60, 50), "TIFF", {}),
        ("CMYK", (60, 50), "JPEG", {}),
        ("CMYK", (60, 50), "TIFF", {}),
        ("RGB", (60, 50), "GIF", {}),
        ("RGB", (60, 50), "PPM", {}),
        ("RGB", (3000, 1), "PNG", {}),
        ("RGB", (1, 3000), "PNG", {}),
    ]
    made = [_encoded(m, s, k, seed, **o) for seed, (m, s, k, o) in enumerate(kinds)]
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 50\n%%EndComments\nshowpage\n"
    return [*made, postscript, b"", b"not an image"]


def png(width: int, height: int, kind: int = 0, bits: int = 8) -> bytes:
    """A greyscale (``kind`` 0) or RGB (2) PNG of zeros, packed hard."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    line = 1 + (width * bits * (3 if kind == 2 else 1) + 7) // 8
    packer = zlib.compressobj(9)
    packed = b""
    left = min(line * height, 1 << 27)
    while left > 0:
        packed += packer.compress(bytes(min(left, 1 << 24)))
        left -= 1 << 24
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    data = packed + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _image_bombs() -> list[bytes]:
    bitmap = bytearray(_encoded("RGB", (4, 4), "BMP", 0))
    bitmap[18:26] = struct.pack("<ii", 40_000, 40_000)
    webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(9)
    return [
        png(50_000, 50_000, bits=1),
        png(13_000, 13_000, bits=1),
        png(8_000, 10_000, bits=1),
        png(2**31 - 1, 1, bits=1),
        png(60_000_000, 1, bits=1),
        png(1, 60_000_000, bits=1),
        bytes(bitmap),
        webp,
    ]


def _arrays(images: list[bytes]) -> dict[str, NDArray[np.generic]]:
    some = images[:4]
    sizes = [len(image) for image in some]
    return {
        "test_images": np.frombuffer(b"".join(some), np.uint8),
        "test_offsets": np.cumsum([0, *sizes]),
        "test_labels": np.arange(len(some)) % 2,
        "classes": np.array(["sea", "sand"]),
    }


def _data_set(images: list[bytes], save) -> bytes:
    file = io.BytesIO()
    save(file, **_arrays(images))
    return file.getvalue()


def _golden() -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, HEIGHT, WIDTH), np.float32)
    np.savez(file, images=images, logits=rng.random((2, 3), np.float32), sources=["a", "b"])
    return file.getvalue()


def _npy(header: str) -> bytes:
    """An .npy file that has a header and no data."""
    text = header.encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _npz_bombs() -> list[bytes]:
    names = ("test_images", "images", "classes", "sources")
    kinds: list[tuple[object, tuple[int, ...]]] = [
        ("|u1", (BOMB_BYTES,)),
        ("<f4", (BOMB_BYTES // 4,)),
        (f"<U{BOMB_BYTES // 4}", (1,)),
        ("|O", (1,)),
        ("<f4", (2**62, 2**62)),
        ("<f4", (-1, 4)),
        ([("a", "<f4")], (0,)),
    ]
    heads = (
        *(repr({"descr": d, "fortran_order": False, "shape": s}) for d, s in kinds),
        "(" * 60,
        "__import__('os').system('true')",
    )
    made = []
    for head in heads:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(f"{name}.npy", _npy(head))
            for name in ("test_offsets", "test_labels", "logits"):
                archive.writestr(f"{name}.npy", _npy(heads[0]))
        made.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, **{name: np.array([_Executed()], object) for name in names}, allow_pickle=True)
    bombs = [zip_bomb(f"{n}.npy", _npy(heads[i]), BOMB_BYTES, {}) for i, n in enumerate(names[:2])]
    return [*made, file.getvalue(), *bombs]
