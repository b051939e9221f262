# SPDX-License-Identifier: Apache-2.0
"""``build_engine.py``: made of stormrt's own modules, whole, and without anybody else's.

What can go wrong: a module that is imported in a function only is left out; a copy drifts from its
original; a package that a board lacks comes in; sources of the plugins are missing.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stormrt
from stormrt.pipeline.device import script, script_main
from stormrt.plugins.derive.cpp_header import SOURCES as PLUGINS
from stormrt.plugins.derive.cpp_header import source_digest
from tests.helpers.native import require_toolchain
from tests.pipeline.device.bundles import make_bundle

ALLOWED = {"numpy", "pycuda"}
"""Beside the standard library. TensorRT is imported by its name, which recipes give."""


def embedded() -> dict[str, str]:
    """The sources in the script, read back by Python itself."""
    tree = ast.parse(script.build_script())
    return {
        ast.literal_eval(node.targets[0].slice): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
    }


def test_every_module_in_it_is_stormrts_own_to_the_letter():
    found = embedded()
    root = Path(stormrt.__file__).parent
    assert len(found) > 25
    for name, source in found.items():
        if name == "stormrt":
            assert source == f'__version__ = "{stormrt.__version__}"\n'
            continue
        base = root.joinpath(*name.split(".")[1:])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        assert source == path.read_text(), name


def test_it_imports_the_standard_library_and_numpy_alone():
    for name, source in {**embedded(), "the script": script.build_script()}.items():
        for node in script._running(ast.parse(source)):
            if isinstance(node, ast.Import):
                tops = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert tops <= set(sys.stdlib_module_names) | ALLOWED | {"stormrt"}, (name, tops)


def test_every_import_of_ours_is_in_it_or_in_the_archive_of_the_plugins():
    found = set(embedded())
    packed = zipfile.ZipFile(io.BytesIO(script.plugin_sources())).namelist()
    archive = {
        "stormrt.plugins." + n.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for n in packed
        if n.endswith(".py")
    }
    for name, source in embedded().items():
        for wanted in script._imports(source):
            assert wanted in found | archive | set(script._NOT_NEEDED), (name, wanted)


def test_the_same_sources_give_the_same_bytes():
    assert script.plugin_sources() == script.plugin_sources()
    with zipfile.ZipFile(io.BytesIO(script.plugin_sources())) as packed:
        assert {i.date_time for i in packed.infolist()} == {script._FIXED_TIME}


def test_the_archive_builds_the_very_library_that_stormrt_builds(tmp_path):
    with zipfile.ZipFile(io.BytesIO(script.plugin_sources())) as packed:
        packed.extractall(tmp_path)
    # Another process: the digest is of what is imported there, and it names the library's version.
    (tmp_path / "build_engine.py").write_text(script.build_script())
    (tmp_path / "plugin_sources.zip").write_bytes(script.plugin_sources())
    code = (
        "import sys, types\n"
        "module = types.ModuleType('script'); module.__file__ = sys.argv[1]\n"
        "exec(open(sys.argv[1]).read(), module.__dict__)\n"
        "sys.meta_path.insert(0, module._Modules())\n"
        "import stormrt.plugins\n"
        "from stormrt.plugins.builder import CORE_NAME\n"
        "from stormrt.plugins.derive.cpp_header import source_digest\n"
        "print(source_digest(), stormrt.plugins.__path__[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "build_engine.py")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    digest, folder = done.stdout.split()
    assert digest == source_digest()
    assert Path(folder) != PLUGINS
    assert not Path(folder).exists(), "the unpacked sources go with the process"


def test_the_script_says_what_python_it_needs_before_anything_else():
    body = ast.parse(script.build_script()).body
    guard = next(i for i, n in enumerate(body) if isinstance(n, ast.If))
    assert "version_info" in ast.unparse(body[guard].test)
    assert all(isinstance(n, (ast.Expr, ast.Import)) for n in body[:guard])


# --- Its command line ----------------------------------------------------------------------------


def test_it_builds_validates_times_and_says_so(tmp_path, rng, trt, capsys):
    folder = make_bundle(tmp_path / "b", rng, error=1e-3)
    assert script_main.main([], folder) == 0
    out, err = capsys.readouterr()
    assert "building engine.plan ..." in err
    assert "100%" in err
    assert "against PyTorch: passed, relative L2 1.0" in out
    assert "CUDA graph: p50 1 ms" in out
    assert (folder / "device_report.json").is_file()
    assert script_main.main(["--json"], folder) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) == json.loads((folder / "device_report.json").read_text())


def test_an_engine_far_from_pytorch_is_exit_code_1(tmp_path, rng, trt, capsys):
    folder = make_bundle(tmp_path / "b", rng, error=0.5)
    assert script_main.main([], folder) == 1
    assert "failed" in capsys.readouterr().out


def test_mistakes_are_one_message_and_their_exit_code(tmp_path, rng, capsys):
    assert script_main.main([str(tmp_path / "nowhere")], tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: manifest.json could not be read")
    folder = make_bundle(tmp_path / "b", rng)
    code = script_main.main([], folder)  # no T4 here, or no TensorRT
    assert code == 3
    assert "python3 b/build_engine.py" in capsys.readouterr().err


def test_an_interruption_is_exit_code_130(tmp_path, rng, trt, capsys):
    trt.breaks_after = 1
    assert script_main.main([], make_bundle(tmp_path / "b", rng)) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bundle_with_plugins_and_without_their_sources_is_told(tmp_path, rng, trt, capsys):
    from stormrt.pipeline.artifacts import PluginUse

    folder = make_bundle(tmp_path / "b", rng, plugins=(PluginUse("SelectiveScan2D", "1", 4),))
    assert script_main.main([], folder) == 3
    assert "plugin_sources.zip" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["common/plugin_v3.cpp", "selective_scan_2d/kernel.cu"])
def test_a_source_that_the_library_needs_is_in_the_archive(name):
    require_toolchain()
    assert name in zipfile.ZipFile(io.BytesIO(script.plugin_sources())).namelist()
