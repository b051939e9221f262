# SPDX-License-Identifier: Apache-2.0
"""The device phase where little is installed: a T4 bundle becomes an engine and a report.

Two environments, with TensorRT-RTX in the place of the board's TensorRT: stormrt's core, and NumPy
alone for ``build_engine.py``. What can go wrong: a module of the workstation is imported, and the
command fails on the board first.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from stormrt.pipeline.build import BuildRequest, build
from stormrt.pipeline.device.reading import read_device_report
from stormrt.pipeline.device_build import read_bundle
from stormrt.pipeline.probe import installed_version
from tests.pipeline import support
from tests.pipeline.device.bare_environment import (
    RTX,
    closure,
    core_requirements,
    make_environment,
)
from tests.pipeline.support import digest

WORKSTATION = {
    "PIL",
    "matplotlib",
    "onnx",
    "onnx_graphsurgeon",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "polygraphy",
    "pycuda",
    "safetensors",
    "scipy",
    "skimage",
    "sklearn",
    "torch",
}
CORE = {"numpy", "packaging", "pydantic", "rich", "stormrt", "tensorrt_rtx", "typer"}
"""What the command line does import, so that the list is not empty for another reason."""
WATCH = """
import atexit, json, sys
atexit.register(lambda: json.dump(
    sorted({name.partition(".")[0] for name in sys.modules}), open(sys.argv_modules, "w")
))
sys.argv_modules = sys.argv.pop(1)
"""
MAIN = WATCH + ("sys.argv[0] = 'stormrt'\nfrom stormrt.pipeline.cli.main import main\nmain()\n")
SCRIPT = WATCH + "import runpy\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')\n"

pytestmark = pytest.mark.skipif(
    installed_version("tensorrt-rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T4 build of the small model on the workstation."""
    root = tmp_path_factory.mktemp("workstation")
    photographs = support.make_photographs(root / "photographs")
    with support.small_variants():
        build(
            BuildRequest(
                model=support.SMALL,
                target="t4",
                out=root / "made",
                num_classes=support.CLASSES,
                storm="keep=0.5,stage=2",
                height=32,
                width=48,
                photographs=photographs,
            )
        )
    return root / "made"


def copied(made: Path, folder: Path) -> Path:
    """What is copied to the board: the manifest's files but the engine."""
    folder.mkdir(parents=True)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["engine"] = None
    manifest["files"] = [f for f in manifest["files"] if f["name"] != "engine.plan"]
    for file in manifest["files"]:
        (folder / file["name"]).write_bytes((made / file["name"]).read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run(python: Path, code: str, *arguments: object, cwd: Path) -> tuple[set[str], str]:
    """Run a program there; return the modules that it had at its end, and what it printed."""
    listed = cwd / "modules.json"
    command = [str(python), "-I", "-c", code, str(listed), *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return set(json.loads(listed.read_text())), done.stdout


def lacks(python: Path, names: set[str]) -> set[str]:
    """Which packages that Python does not find."""
    code = "import sys, importlib.util as u; print([n for n in sys.argv[1:] if not u.find_spec(n)])"
    done = subprocess.run(
        [python, "-I", "-c", code, *sorted(names)], capture_output=True, text=True, check=True
    )
    return set(eval(done.stdout))


def check_engine_and_report(folder: Path, made: Path, made_by: str) -> None:
    manifest, _ = read_bundle(folder)
    assert manifest.engine is not None
    # TensorRT-RTX gives the same bytes for the same graph.
    assert digest(folder / "engine.plan") == digest(made / "engine.plan")
    report = read_device_report(folder / "device_report.json")
    assert report.made_by.startswith(made_by)
    (engine,) = report.engines
    assert engine.file == manifest.engine.file
    if report.machine.sm != 75:
        assert engine.validation.status == engine.benchmark.status == "not run"
        assert engine.validation.reason
        assert engine.validation.metrics is None


def report_of(folder: Path) -> dict:
    """A bundle's report, without what differs from run to run."""
    report = json.loads((folder / "device_report.json").read_text())
    del report["made_by"], report["free_memory_mib"], report["engines"][0]["build_s"]
    return report


def test_stormrt_build_needs_its_core_and_build_engine_py_numpy_and_the_runtime_alone(
    made, tmp_path
):
    packages = closure((*core_requirements(), RTX))
    python = make_environment(tmp_path / "core", packages, with_stormrt=True)
    assert lacks(python, WORKSTATION) == WORKSTATION
    one = copied(made, tmp_path / "one" / "b")
    modules, out = run(python, MAIN, "build", one, cwd=tmp_path)
    assert not modules & WORKSTATION
    assert modules >= CORE
    assert "device_report.json" in out
    check_engine_and_report(one, made, "stormrt build")

    packages = closure(("numpy", RTX))
    python = make_environment(tmp_path / "bare", packages, with_stormrt=False)
    other = {"packaging", "pydantic", "rich", "typer", "stormrt"}
    assert lacks(python, WORKSTATION | other) == WORKSTATION | other
    two = copied(made, tmp_path / "two" / "b")
    modules, out = run(python, SCRIPT, two / "build_engine.py", "--json", cwd=tmp_path)
    assert not modules & (WORKSTATION | other - {"stormrt"})
    assert modules >= {"numpy", "tensorrt_rtx", "stormrt"}
    assert json.loads(out) == json.loads((two / "device_report.json").read_text())
    check_engine_and_report(two, made, "build_engine.py")

    assert report_of(one) == report_of(two)
