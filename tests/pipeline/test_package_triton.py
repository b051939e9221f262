# SPDX-License-Identifier: Apache-2.0
"""Triton: the repository's layout, ``config.pbtxt`` read back, and the client with a stand-in."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from stormrt.pipeline.package.assemble import package_bundle
from stormrt.pipeline.package.model import read_model
from stormrt.pipeline.package.schema_triton import ModelConfig
from stormrt.pipeline.package.triton import config
from stormrt.pipeline.photographs import packaged_photographs, preprocess
from tests.pipeline.package_bundles import CLASSES, HEIGHT, WIDTH, golden, make_bundle, make_library

REPEATED = ("input", "output", "instance_group")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[{}]|[A-Za-z_]\w*:?|-?\d+')


def parse_pbtxt(text: str) -> dict[str, object]:
    """Protobuf's text format, as far as the package writes it."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    tokens = TOKEN.findall(text)
    # Nothing may be skipped: what is no token is a mistake in the file.
    assert not TOKEN.sub("", text).strip()

    def message() -> dict[str, object]:
        found: dict[str, object] = {}
        while tokens and tokens[0] != "}":
            name = tokens.pop(0)
            if name.endswith(":"):
                name, value = name[:-1], tokens.pop(0)
                scalar = value if value.isidentifier() else json.loads(value)
                assert name not in found, f"{name} is there twice"
                found[name] = scalar
                continue
            assert tokens.pop(0) == "{", name
            inner = message()
            assert tokens.pop(0) == "}"
            if name in REPEATED:
                found.setdefault(name, []).append(inner)  # type: ignore[attr-defined]
            else:
                found[name] = inner
        return found

    found = message()
    assert not tokens
    return found


@pytest.fixture
def packaged(tmp_path):
    """Makes a package; its folder."""

    def make(library: bool = False, **wanted: object) -> Path:
        bundle = make_bundle(tmp_path / "bundle", **wanted)
        if library:
            make_library(bundle)
        return package_bundle(bundle, "triton", tmp_path / "package").folder

    return make


def pbtxt(folder: Path) -> str:
    return (folder / "model_repository/tiny/config.pbtxt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wanted",
    [{}, {"batch": 3}, {"batch": 8, "dynamic": True}, {"plugins": True, "engine": "tensorrt"}],
)
def test_the_configuration_is_read_back_as_the_same(packaged, wanted):
    folder = packaged(**wanted)
    found = ModelConfig.model_validate(parse_pbtxt(pbtxt(folder)))
    assert found == config(read_model(folder.parent / "bundle"))


def tritons_schema() -> ModuleType:
    """``model_config.proto``, compiled, of the package tritonclient; its gRPC is not needed."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    path = Path(package.submodule_search_locations[0]) / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("wanted", [{}, {"batch": 8, "dynamic": True}])
def test_tritons_own_schema_reads_it(packaged, wanted):
    compiled = tritons_schema()
    from google.protobuf import text_format

    text = pbtxt(packaged(**wanted))
    found = text_format.Parse(text, compiled.ModelConfig())
    assert found.platform == "tensorrt_plan"
    assert list(found.input[0].dims) == parse_pbtxt(text)["input"][0]["dims"]


def test_a_fixed_batch_is_a_part_of_the_dims(packaged):
    found = ModelConfig.model_validate(parse_pbtxt(pbtxt(packaged(batch=3))))
    assert found.max_batch_size == 0
    assert found.input[0].dims == (3, 3, HEIGHT, WIDTH)
    assert found.output[0].dims == (3, len(CLASSES))
    assert found.dynamic_batching is None


def test_a_dynamic_batch_is_the_servers_to_gather(packaged):
    found = ModelConfig.model_validate(parse_pbtxt(pbtxt(packaged(batch=8, dynamic=True))))
    assert found.max_batch_size == 8
    assert found.input[0].dims == (3, HEIGHT, WIDTH)
    assert found.output[0].dims == (len(CLASSES),)
    assert found.dynamic_batching is not None


@pytest.mark.parametrize(
    "change",
    [
        ("max_batch_size:", "max_batch:"),
        ("label_filename:", "labels:"),
        ("instance_group {", "instance_groups {"),
        ("TYPE_FP32", "TYPE_FLOAT"),
        ("tensorrt_plan", "onnxruntime_onnx"),
    ],
)
def test_an_unknown_key_or_value_fails(packaged, change):
    text = pbtxt(packaged())
    assert change[0] in text
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(parse_pbtxt(text.replace(*change)))


def test_the_plan_lies_where_the_configuration_says(packaged):
    folder = packaged(engine="tensorrt")
    found = ModelConfig.model_validate(parse_pbtxt(pbtxt(folder)))
    model = folder / "model_repository" / found.name
    assert (model / "1" / found.default_model_filename).read_bytes() == b"a plan of tensorrt"
    labels = (model / found.output[0].label_filename).read_text(encoding="utf-8")
    assert tuple(labels.splitlines()) == CLASSES


def test_without_an_engine_the_script_builds_it_into_the_repository(packaged):
    script = (packaged() / "build_engine.sh").read_text()
    assert "--saveEngine=model_repository/tiny/1/model.plan.part" in script


def test_the_plugin_library_is_loaded_by_the_backends_option(packaged):
    folder = packaged(library=True, plugins=True, engine="tensorrt")
    library = "plugins/libstormrt_plugins_autoload.so"
    assert (folder / library).is_file()
    readme = (folder / "README.md").read_text()
    assert f"--backend-config=tensorrt,plugins=/package/{library}" in readme
    assert f"LD_PRELOAD=/package/{library}" in readme


def test_without_plugins_nothing_is_said_of_them(packaged):
    readme = (packaged(engine="tensorrt") / "README.md").read_text()
    assert "--backend-config" not in readme
    assert "LD_PRELOAD" not in readme


@pytest.fixture
def client(packaged, monkeypatch):
    """The package's client as a module, before a server that answers with the golden logits."""
    folder = packaged(batch=2, engine="tensorrt")
    images, logits = golden(folder.parent / "bundle")
    asked = []

    class Input:
        def __init__(self, name, shape, kind):
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, batch):
            assert list(batch.shape) == self.shape
            self.batch = batch

    class Server:
        def __init__(self, url):
            assert url == "localhost:8000"

        def infer(self, model, inputs, outputs):
            asked.append((model, inputs[0].name, inputs[0].kind, outputs[0]))
            rows = []
            for image in inputs[0].batch:
                distance = np.abs(images - image).reshape(len(images), -1).max(axis=1)
                rows.append(logits[distance.argmin()])
            return SimpleNamespace(as_numpy=lambda _: np.array(rows))

    for name, content in {
        "tritonclient": {},
        "tritonclient.http": {
            "InferInput": Input,
            "InferRequestedOutput": lambda name: name,
            "InferenceServerClient": Server,
        },
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["tritonclient"].http = sys.modules["tritonclient.http"]

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["client.py", *map(str, arguments)])
        module = runpy.run_path(str(folder / "client.py"))
        return SimpleNamespace(module=module, main=module["main"], asked=asked)

    return run


def test_the_client_prepares_photographs_as_stormrt_does(client):
    found = client().module["preprocess"]
    for path in packaged_photographs()[:4]:
        np.testing.assert_array_equal(found(path), preprocess(path, HEIGHT, WIDTH))


def test_the_client_checks_a_server_on_the_golden_data(client, capsys):
    run = client("--golden")
    run.main()
    assert "relative L2 0.00e+00, same argmax 100%" in capsys.readouterr().out
    assert set(run.asked) == {("tiny", "images", "FP32", "logits")}


def test_the_client_names_five_classes(client, capsys):
    client(packaged_photographs()[0]).main()
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("%", 1)[1].strip() for line in lines} == set(CLASSES)
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert abs(sum(shares) - 100) < 0.5


def test_the_client_says_what_it_needs(client, capsys):
    with pytest.raises(SystemExit) as stopped:
        client().main()
    assert stopped.value.code == 2
    assert "--golden" in capsys.readouterr().err
