# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: each reader of stormrt with a strategy for the files that it is given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from hypothesis import strategies as st
from onnx import TensorProto

from stormrt.errors import StormrtError
from tests.hardening.corpus import HEIGHT, RAN, WIDTH, Corpus, small_model
from tests.hardening.mutations import (
    WORDS,
    damaged,
    damaged_json,
    damaged_toml,
    damaged_zip,
)
from tests.pipeline.support import CLASSES, SMALL


@dataclass(frozen=True)
class Reader:
    """A reader and the files that it gets."""

    name: str
    files: st.SearchStrategy[bytes]
    read: Callable[[Path], object]
    """Takes the file, or a copy of it under the name that is wanted."""
    file: str
    """The file's name."""
    weight: float = 1.0
    """Its share of the cases, by what a case costs."""


_MANY_NUMBERS = st.one_of(
    st.integers(-2, 300).map(str),
    st.floats().map(str),
    st.sampled_from(
        ("", "1e999", "-0", "0x1", "१", "1" * 5_000, "1_0", " 1 ", "1e-320", "10000000")
    ),
)
_KEYS = (
    "keep",
    "host",
    "stage",
    "block",
    "unit",
    "mode",
    "restore",
    "flops",
    "steps",
    "policy",
    "latency<",
    "file",
    "batch",
    "",
)
_WORDS = (
    "random",
    "feature_norm",
    "step_size",
    "uniform",
    "window",
    "line",
    "merge",
    "stage",
    "end",
    "early",
    "spread",
    "/dev/null",
    *WORDS,
)
_PARTS = st.builds(
    lambda key, value: f"{key}={value}",
    st.sampled_from(_KEYS),
    st.one_of(_MANY_NUMBERS, st.sampled_from(_WORDS), st.text(max_size=5)),
)
_SPECS = st.one_of(
    st.lists(_PARTS, max_size=5).map(",".join),
    st.builds(
        lambda head, rest: ",".join([head, *rest]),
        st.sampled_from(("keep=0.5", "flops=0.75", "flops=0.5", "latency<=1.0", "keep=1")),
        st.lists(_PARTS, max_size=4),
    ),
    st.builds(
        lambda keep, stage, rest: ",".join([f"keep={keep},stage={stage}", *rest]),
        st.floats(0, 1.1),
        st.integers(0, 4),
        st.lists(
            st.sampled_from(
                (
                    "block=0",
                    "block=1",
                    "unit=window",
                    "mode=merge",
                    "restore=stage",
                    "host=uniform",
                    "host=random",
                    "host=step_size",
                )
            ),
            max_size=3,
            unique=True,
        ),
    ),
    st.builds(
        lambda share, steps, policy: f"flops={share},steps={steps}{policy}",
        st.floats(0, 1.1),
        st.integers(-1, 10**9),
        st.sampled_from(("", ",policy=early", ",policy=spread")),
    ),
    st.text(max_size=20),
    st.sampled_from(WORDS),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
_SIZES = st.one_of(
    st.builds(lambda *p: "x".join(map(str, p)), st.integers(-1, 10**6), st.integers(-1, 10**6)),
    st.builds(lambda *p: "x".join(map(str, p)), st.integers(20, 999), st.integers(20, 999)),
    _MANY_NUMBERS,
    st.text(max_size=8),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def readers(corpus: Corpus) -> tuple[Reader, ...]:
    """Every reader that is fuzzed."""
    one_of_bombs = st.sampled_from
    return (
        Reader("manifest", damaged_json(corpus.manifests), _read_manifest, "manifest.json"),
        Reader(
            "bundle",
            damaged_json(corpus.manifests),
            _in_bundle(corpus.bundle, _read_bundle),
            "manifest.json",
        ),
        Reader(
            "bundle, validated",
            damaged_json(corpus.manifests),
            _in_bundle(corpus.bundle, _validate),
            "manifest.json",
            0.1,
        ),
        Reader(
            "engine record",
            damaged_json(corpus.manifests[1:]),
            _in_bundle(corpus.bundle, _read_record),
            "manifest.json",
        ),
        Reader(
            "manifest on a device",
            damaged_json(corpus.manifests),
            _in_bundle(corpus.bundle, _read_on_device),
            "manifest.json",
        ),
        Reader("report", damaged_json(corpus.reports), _read_report, "report.json"),
        Reader(
            "bundle archive",
            st.one_of(st.sampled_from(corpus.archives), damaged(corpus.archives)),
            _unpack,
            "bundle.tar.gz",
            0.5,
        ),
        Reader("stage record", damaged_json(corpus.records), _read_stage, "export.json"),
        Reader("recipe", damaged_toml(corpus.recipes), _read_recipe, "mine.toml", 1.5),
        Reader(
            "checkpoint .pth",
            st.one_of(
                st.sampled_from(corpus.torch_files),
                damaged_zip(corpus.torch_files),
                one_of_bombs(corpus.torch_bombs),
                damaged(corpus.torch_bombs[:-1]),
            ),
            _read_checkpoint,
            "weights.pth",
            0.4,
        ),
        Reader(
            "checkpoint .safetensors",
            st.one_of(st.sampled_from(corpus.safetensors), damaged(corpus.safetensors)),
            _read_checkpoint,
            "weights.safetensors",
            0.4,
        ),
        Reader("model card", damaged_json(corpus.cards), _read_card, "weights.json"),
        Reader(
            "ONNX file",
            st.one_of(damaged(corpus.graphs), damaged_graphs(corpus.graphs)),
            _read_onnx,
            "model.onnx",
        ),
        Reader(
            "ONNX graph in onnxruntime",
            st.one_of(damaged(corpus.graphs[1:]), damaged_graphs(corpus.graphs[1:])),
            _open_session,
            "model.onnx",
            0.4,
        ),
        Reader("calibration table", damaged_json(corpus.tables), _read_table, "table.json"),
        Reader("STORM plan", damaged_json(corpus.plans[:2]), _read_plan, "plan.json", 1.5),
        Reader("long STORM plan", damaged_json(corpus.plans[2:]), _read_plan, "plan.json", 0.1),
        Reader("measured times", damaged_json(corpus.measured), _read_measured, "times.json"),
        Reader("--storm", _SPECS, _read_spec, "spec.txt", 1.5),
        Reader("--size", _SIZES, _read_size, "size.txt", 0.5),
        Reader(
            "data set .npz",
            st.one_of(damaged_zip(corpus.data_sets), one_of_bombs(corpus.npz_bombs)),
            _read_data_set,
            "data.npz",
        ),
        Reader(
            "golden data",
            st.one_of(damaged_zip(corpus.goldens), one_of_bombs(corpus.npz_bombs)),
            _read_golden,
            "golden.npz",
        ),
        Reader(
            "image",
            st.one_of(st.sampled_from(corpus.images), damaged(corpus.images)),
            _read_image,
            "photo.jpg",
            2.0,
        ),
        Reader("image bomb", one_of_bombs(corpus.image_bombs), _read_image, "photo.png", 0.05),
    )


# The readers. What is imported late is so that a forked child finds it loaded already.


def _read_manifest(path: Path) -> object:
    from stormrt.pipeline.schema import Manifest

    manifest = Manifest.read(path)
    return manifest.to_json(), Manifest.model_validate_json(manifest.to_json())


def _in_bundle(bundle: Path, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads the bundle with its manifest replaced."""

    def run(path: Path) -> object:
        folder = path.parent / "bundle"
        if not folder.exists():
            shutil.copytree(
                bundle, folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.json")
            )
        (folder / "manifest.json").unlink(missing_ok=True)
        shutil.copyfile(path, folder / "manifest.json")
        return read(folder)

    return run


def _read_bundle(folder: Path) -> object:
    from stormrt.pipeline.device_build import read_bundle
    from stormrt.pipeline.inspection import inspect_path
    from stormrt.pipeline.package.model import read_model

    def of_package() -> object:
        return read_model(folder)

    return [_tried(f) for f in (lambda: read_bundle(folder), of_package)], inspect_path(folder)


def _validate(folder: Path) -> object:
    from stormrt.pipeline.revalidate import revalidate

    return revalidate(folder)


def _tried(read: Callable[[], object]) -> object:
    try:
        return read()
    except StormrtError as error:
        return error


def _read_record(folder: Path) -> object:
    from stormrt.runtime.manifest_record import read_record
    from stormrt.runtime.record import check_files, check_gpu, check_version

    record = read_record(folder)
    _tried(lambda: check_gpu(record, "Some GPU", 87))
    _tried(lambda: check_version(record, "10.3.0"))
    _tried(lambda: check_files(record))
    return read_record(folder / "engine.plan")


def _read_on_device(folder: Path) -> object:
    from stormrt.pipeline.device.bundle import read_manifest

    bundle = read_manifest(folder)
    return bundle.verify(), bundle.board.tolerance_for(bundle.precision, bundle.runtime)


def _read_report(path: Path) -> object:
    from stormrt.pipeline.device.reading import read_reports

    return read_reports(path)


def _unpack(path: Path) -> object:
    from stormrt.pipeline.device.archive import unpack

    inner = path.parent / "unpacked" / "below"
    shutil.rmtree(inner.parent, ignore_errors=True)
    inner.mkdir(parents=True)
    kind = "zip" if path.read_bytes()[:2] == b"PK" else "tar.gz"
    archive = inner / f"bundle.{kind}"
    os.link(path, archive)
    try:
        return unpack(archive)
    finally:
        links = [p for p in inner.rglob("*") if p.is_symlink()]
        assert not links, f"links were unpacked: {links}"
        assert os.listdir(inner.parent) == ["below"], "a file left the folder"


def _read_stage(path: Path) -> object:
    import json

    from stormrt.pipeline.artifacts import ExportedGraph
    from stormrt.pipeline.stage_cache import StageCache

    def key() -> str:
        try:
            return str(json.loads(path.read_bytes())["key"])
        except Exception:  # noqa: BLE001 - any key will do
            return ""

    return StageCache(path.parent).load("export", ExportedGraph, key())


def _read_recipe(path: Path) -> object:
    from stormrt.targets import dump_target, load_target

    return dump_target(load_target(path))


def _read_checkpoint(path: Path) -> object:
    from stormrt.pipeline.inspection import inspect_path
    from stormrt.storm.checkpoint import load_checkpoint

    _tried(lambda: inspect_path(path))
    try:
        return load_checkpoint(small_model(), path)
    finally:
        assert RAN not in os.environ, "code in a checkpoint was executed"


def _read_card(path: Path) -> object:
    from stormrt.models import read_card

    return read_card(path.with_suffix(".safetensors"), "0" * 64)


def _read_onnx(path: Path) -> object:
    from stormrt.pipeline.inspection import inspect_path

    return inspect_path(path)


def _open_session(path: Path) -> object:
    from stormrt.pipeline.comparison import open_session
    from stormrt.pipeline.onnx_file import load_onnx

    return open_session(load_onnx(path).SerializeToString(), str(path))


def _read_table(path: Path) -> object:
    from stormrt.calibration.check import check_table, read_table

    table = read_table(path)
    return check_table(table, table.model, "0" * 64)


def _variant():
    from stormrt.storm.variants import get_variant

    return get_variant(SMALL)


def _read_plan(path: Path) -> object:
    from stormrt.storm.flops import count_flops
    from stormrt.storm.plan import parse_plan

    plan = parse_plan(str(path), _variant(), 64, 48)
    return plan.describe(), plan.to_json(), count_flops(_variant(), 64, 48, plan)


def _read_measured(path: Path) -> object:
    from stormrt.storm.plan import parse_plan

    return parse_plan(f"latency<=2.5,file={path}", _variant(), 64, 48)


def _argument(path: Path) -> str:
    """A file's bytes as Python decodes those of a command line."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _read_spec(path: Path) -> object:
    from stormrt.storm.plan import parse_plan

    return parse_plan(_argument(path), _variant(), 64, 48)


def _read_size(path: Path) -> object:
    from stormrt.pipeline.cli.options import parse_size
    from stormrt.pipeline.model_spec import resolve_spec

    height, width = parse_size(_argument(path))
    return resolve_spec(
        SMALL, num_classes=CLASSES, height=height, width=width, storm="keep=1,stage=2"
    )


def _read_data_set(path: Path) -> object:
    from stormrt.calibration.images import choose_images
    from stormrt.calibration.statistics import load_statistics
    from stormrt.pipeline.datasets import open_dataset
    from stormrt.pipeline.photographs import preprocess_labelled

    load_statistics(path, "")
    _tried(lambda: choose_images((path,), HEIGHT, WIDTH))
    data = open_dataset(path)
    for index in range(min(4, len(data))):
        _tried(lambda i=index: preprocess_labelled(data.source(i), data.name(i), HEIGHT, WIDTH))
    return [data.label(i) for i in range(len(data))], data.classes


def _read_golden(path: Path) -> object:
    from stormrt.pipeline.golden import read_golden

    return read_golden(path)


def _read_image(path: Path) -> object:
    from stormrt.pipeline.photographs import check_photographs, preprocess, preprocess_labelled

    check_photographs([path])
    _tried(lambda: preprocess_labelled(path, "it", HEIGHT, WIDTH))
    return preprocess(path, HEIGHT, WIDTH)


# Damaged graphs.

_DIMS = (0, -1, 1, 2**31, 2**40, 2**62, -(2**63))
_PLACES = ("/etc/passwd", "../../../etc/passwd", "model.onnx", "x.bin", "", "/dev/zero", "a\0b")


@st.composite
def damaged_graphs(draw: st.DrawFn, bases: Sequence[bytes]) -> bytes:
    """An ONNX graph that parses, and says something wrong."""
    model = onnx.ModelProto()
    model.ParseFromString(draw(st.sampled_from(bases)))
    graph = model.graph
    for _ in range(draw(st.integers(1, 3))):
        node = graph.node[draw(st.integers(0, 2**16)) % len(graph.node)]
        weights = graph.initializer or [TensorProto()]
        weight = weights[draw(st.integers(0, 2**16)) % len(weights)]
        match draw(st.integers(0, 12)):
            case 0:
                _set_dims(weight, draw(st.lists(st.sampled_from(_DIMS), max_size=4)))
            case 1:
                weight.data_location = TensorProto.EXTERNAL
                for key, value in (
                    ("location", draw(st.sampled_from(_PLACES))),
                    ("offset", str(draw(st.sampled_from(_DIMS)))),
                    ("length", str(draw(st.sampled_from(_DIMS)))),
                ):
                    weight.external_data.add(key=key, value=value)
            case 2:
                info = draw(st.sampled_from((graph.input[0], graph.output[0])))
                for dim in info.type.tensor_type.shape.dim:
                    dim.dim_value = draw(st.sampled_from(_DIMS))
            case 3:
                draw(st.sampled_from((graph.input[0], graph.output[0]))).ClearField("type")
            case 4:
                node.op_type = draw(st.sampled_from(("NoSuchOp", "", "Loop", "SelectiveScan2D")))
            case 5:
                node.domain = draw(st.sampled_from(("stormrt", "com.microsoft", "nowhere")))
            case 6:
                del graph.initializer[draw(st.integers(0, 2**16)) % max(1, len(weights)) :]
            case 7:
                node.input.extend(node.output)
            case 8:
                weight.data_type = draw(st.sampled_from((0, 7, 8, 16, 999)))
            case 9:
                for opset in model.opset_import:
                    opset.version = draw(st.sampled_from((0, -1, 1, 10**9)))
            case 10:
                model.ir_version = draw(st.sampled_from((0, 1, 10**9)))
            case 11:
                node.output[0] = draw(st.sampled_from(("", "images", "logits", "x" * 10_000)))
            case _:
                del graph.node[draw(st.integers(0, 2**16)) % len(graph.node) :]
                if not graph.node:
                    break
    return bytes(model.SerializeToString())


def _set_dims(weight: TensorProto, dims: Sequence[int]) -> None:
    del weight.dims[:]
    weight.dims.extend(dims)
