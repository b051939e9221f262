# SPDX-License-Identifier: Apache-2.0
"""The library in TensorRT's own registries, through Python: loaded, and autoloaded by dlopen.

What can go wrong: plugins are registered where TensorRT does not look for them; a second load
crashes or registers them twice; what a registry points to is unmapped by a dlclose; a library for
another TensorRT takes its host down and the check with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.plugins import check
from stormrt.plugins.builder import BuildResult
from stormrt.plugins.check import check_library
from stormrt.plugins.derive.trt import expected_creators
from tests.helpers.native import LEAN_VERSIONS, ROOT, lean_folder, lean_library

EXPECTED = [list(creator) for creator in sorted(expected_creators())]

AUTOLOAD = """
import ctypes, json, sys
import tensorrt_lean_bindings as trt

registry = trt.get_plugin_registry()
autoload, core, copy = sys.argv[1:]

def ours():
    known = [c for c in registry.all_creators if c.plugin_namespace == "stormrt"]
    # The namespace in which TensorRT finds a creator is not the one that the creator tells.
    found = [c for c in known if registry.get_creator(c.name, c.plugin_version, "stormrt")]
    assert len(found) == len(known)
    return sorted([c.name, c.plugin_version, c.plugin_namespace] for c in found)

states = [ours()]
first = ctypes.CDLL(autoload)
states.append(ours())
second = ctypes.CDLL(autoload)
states.append(ours())
ctypes.CDLL(copy)
states.append(ours())
registry.load_library(core)
states.append(ours())
ctypes.CDLL(None).dlclose(ctypes.c_void_p(first._handle))
ctypes.CDLL(None).dlclose(ctypes.c_void_p(second._handle))
states.append(ours())
for name, version, namespace in states[-1]:
    creator = registry.get_creator(name, version, namespace)
    assert creator.create_plugin(name, trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
print(json.dumps(states))
"""

DEREGISTER = """
import json, sys
import tensorrt_lean_bindings as trt

registry = trt.get_plugin_registry()
counts = []

def count():
    counts.append(sum(c.plugin_namespace == "stormrt" for c in registry.all_creators))

handle = registry.load_library(sys.argv[1])
count()
registry.deregister_library(handle)
count()
assert registry.load_library(sys.argv[1])
count()
# Refused, since its plugins are there.
assert registry.load_library(sys.argv[1]) is None
count()
print(json.dumps(counts))
"""


def test_make_setup_unpacks_the_runtimes_that_the_tests_load():
    (line,) = (
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("LEAN :=")
    )
    assert tuple(line.split()[2:]) == LEAN_VERSIONS


@pytest.fixture(params=LEAN_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_library_loads_through_a_lean_registry(
    version: str, library: BuildResult, monkeypatch: pytest.MonkeyPatch
):
    folder = str(lean_folder(version))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), folder]))
    checks = {c.host: c for c in check_library(library.core)}
    assert checks["the library itself"].status == "passed"
    assert "sm_87" in checks["the library itself"].detail
    lean = checks["tensorrt_lean"]
    assert (lean.status, lean.detail) == ("passed", f"version {version}")
    assert [list(c) for c in lean.creators] == EXPECTED


def test_the_library_can_be_taken_out_of_a_registry_and_put_back(
    version: str, library: BuildResult
):
    done = subprocess.run(
        [sys.executable, "-c", DEREGISTER, library.core],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(lean_folder(version))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [len(EXPECTED), 0, len(EXPECTED), len(EXPECTED)]


def test_what_is_not_installed_is_not_run_and_says_so(
    library: BuildResult, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "RUNTIMES", {"tensorrt": ("no_such_tensorrt",)})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (itself, tensorrt) = check_library(library.core)
    assert itself.status == "passed"
    assert (tensorrt.status, tensorrt.detail) == ("not run", "tensorrt is not installed")


def test_a_library_that_takes_its_host_down_is_reported(
    tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = str(lean_folder(LEAN_VERSIONS[0]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), folder]))
    source = tmp_path / "crash.cpp"
    source.write_text(
        "#include <cstdlib>\n"
        'extern "C" void* const* getCreators(int& n) { n = 0; std::abort(); }\n'
        'extern "C" void setLoggerFinder(void*) {}\n'
    )
    out = tmp_path / "crash.so"
    subprocess.run([tools.host_compiler, "-shared", "-fPIC", source, "-o", out], check=True)
    checks = {c.host: c for c in check_library(out)}
    assert checks["the library itself"].status == "failed"
    assert checks["tensorrt_lean"].status == "failed"
    assert "SIGABRT" in checks["tensorrt_lean"].detail


def test_the_autoload_library_registers_under_dlopen_and_loading_again_is_harmless(
    version: str, library: BuildResult, library_of_11: BuildResult, tmp_path: Path
):
    major = version.split(".")[0]
    built = library if library.manifest.tensorrt_headers.startswith(f"{major}.") else library_of_11
    assert built.manifest.tensorrt_headers.startswith(f"{major}.")
    # Full TensorRT is libnvinfer; here the lean runtime goes by its name.
    (tmp_path / f"libnvinfer.so.{major}").symlink_to(lean_library(version))
    copy = tmp_path / "copy.so"
    copy.write_bytes(built.autoload.read_bytes())
    path = f"{tmp_path}:{built.core.parent}"
    command = [sys.executable, "-c", AUTOLOAD, built.autoload, built.core, copy]
    environment = {
        **os.environ,
        "PYTHONPATH": str(lean_folder(version)),
        "LD_LIBRARY_PATH": path,
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    before, *after = json.loads(done.stdout)
    assert before == []
    assert after == [EXPECTED] * 5


def test_the_autoload_library_of_another_major_version_does_not_load(
    library: BuildResult, tmp_path: Path
):
    # Linked by SONAME: the loader refuses it, where a shared name would crash later.
    major = library.manifest.tensorrt_headers.split(".")[0]
    other = next(v for v in LEAN_VERSIONS if not v.startswith(f"{major}."))
    command = [
        *(sys.executable, "-c"),
        "import ctypes, sys, tensorrt_lean_bindings; ctypes.CDLL(sys.argv[1])",
        library.autoload,
    ]
    environment = {**os.environ, "PYTHONPATH": str(lean_folder(other))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert f"libnvinfer.so.{major}" in done.stderr
