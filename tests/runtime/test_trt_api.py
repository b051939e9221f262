# SPDX-License-Identifier: Apache-2.0
"""Every name that the runner uses of TensorRT, in each TensorRT that is at hand.

The protocols of ``runtime/trt_api.py`` are the list: mypy lets the runner use nothing else. Each
package is a process of its own, since two TensorRTs do not share one. What can go wrong: a release
renames or drops a call, or takes other arguments, and an engine fails on a board first.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stormrt.pipeline import engine_api
from stormrt.runtime import trt_api
from stormrt.runtime.trt_api import OPTIONAL
from tests.helpers.native import LEAN_VERSIONS, lean_folder
from tests.helpers.stubs import stub_file

CLASSES: dict[str, type] = {
    "": trt_api.RuntimeApi,
    "Runtime": trt_api.Runtime,
    "ICudaEngine": trt_api.CudaEngine,
    "IExecutionContext": trt_api.ExecutionContext,
    "IPluginRegistry": engine_api.PluginRegistry,
}
"""TensorRT's classes, "" for the module itself, and our view of them."""
MEMBERS = {
    "ExecutionContextAllocationStrategy": ["STATIC", "USER_MANAGED"],
    "TensorIOMode": ["INPUT", "OUTPUT"],
    "DataType": ["FLOAT"],
    "ILogger.Severity": ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"],
}
"""Members of enumerations that the runner asks for, or compares with, by name."""

PROBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {}
for owner, name in json.loads(sys.argv[2]):
    holder = module
    for part in filter(None, owner.split(".")):
        holder = getattr(holder, part, None)
    value = getattr(holder, name, None)
    if holder is not None and hasattr(holder, name):
        found[f"{owner}.{name}"] = getattr(value, "__doc__", None) or ""
print(json.dumps(found))
"""


def names_of(protocol: type) -> list[str]:
    """The members that a protocol declares."""
    declared = {**vars(protocol), **inspect.get_annotations(protocol)}
    public = (n for n in declared if not n.startswith("_") or n == "__version__")
    return sorted(public)


def wanted() -> list[tuple[str, str]]:
    names = [(owner, name) for owner, view in CLASSES.items() for name in names_of(view)]
    return names + [(owner, name) for owner, members in MEMBERS.items() for name in members]


def arity(view: type, name: str) -> int | None:
    """How many arguments the runner gives to a method; None for what is no method."""
    method = vars(view).get(name)
    return len(inspect.signature(method).parameters) - 1 if inspect.isfunction(method) else None


def overloads(name: str, doc: str) -> list[tuple[int, int]]:
    """The least and the largest number of arguments of each signature in pybind11's text."""
    signatures = re.findall(rf"\b{name}\(self: [^,)]+(.*)\) ->", doc)
    parameters = [re.findall(r", \w+: [^,]*", s) for s in signatures]
    return [(sum("=" not in p for p in ps), len(ps)) for ps in parameters]


def problems(found: dict[str, str]) -> list[str]:
    """What of the list a package lacks, or has with other arguments."""
    told = []
    for owner, name in wanted():
        doc = found.get(f"{owner}.{name}")
        if doc is None:
            told += [] if name in OPTIONAL else [f"no {owner}.{name}"]
            continue
        given = arity(CLASSES[owner], name) if owner in CLASSES else None
        taken = overloads(name, doc)
        if given is not None and taken and not any(least <= given <= n for least, n in taken):
            told.append(f"{owner}.{name} takes {taken} arguments, not {given}")
    return told


def ask(module: str, *paths: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, paths))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module, json.dumps(wanted())],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list_is_what_the_runner_uses():
    names = {name for _, name in wanted()}
    assert {"deserialize_cuda_engine", "execute_async_v3", "set_tensor_address"} <= names
    assert {"get_tensor_profile_shape", "set_device_memory", "load_library"} <= names
    assert len(names) > 25


@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_a_lean_runtime_has_every_name(version: str):
    found = ask("tensorrt_lean_bindings", lean_folder(version))
    assert problems(found) == []
    assert overloads("set_device_memory", found["IExecutionContext.set_device_memory"]) == [(2, 2)]


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_rtx_has_the_cache_of_its_runtime():
    # Not on the list above: TensorRT has no such thing.
    module = importlib.import_module("tensorrt_rtx")
    views = {
        "ICudaEngine": trt_api.RtxEngine,
        "IRuntimeConfig": trt_api.RuntimeConfig,
        "IRuntimeCache": trt_api.RuntimeCache,
    }
    for owner, view in views.items():
        for name in names_of(view):
            assert hasattr(getattr(module, owner), name), f"{owner}.{name}"


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_rtx_has_every_name_and_the_one_that_only_it_has():
    found = ask("tensorrt_rtx")
    assert problems(found) == []
    assert "IExecutionContext.is_stream_capturable" in found


def in_stubs(text: str) -> dict[str, str]:
    """The names of a stub file, which its own mistakes keep Python from parsing."""
    found: dict[str, str] = {}
    blocks = re.split(r"^class (\w+).*:$", text, flags=re.MULTILINE)
    classes = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    for owner, name in wanted():
        holder, _, inner = owner.partition(".")
        body = classes.get(holder, "") if holder else text
        if inner:
            body = body.partition(f"class {inner}")[2]
        pattern = rf"^ *(?:def {name}\(|class {name}\b|{name}: |{name}\b.* = )"
        if re.search(pattern, body, re.MULTILINE):
            lines = re.findall(rf"^ *def ({name}\(self.*\) -> .*):", body, re.MULTILINE)
            found[f"{owner}.{name}"] = "\n".join(re.sub(r"\(self", "(self: X", x) for x in lines)
    return found


def test_the_stubs_of_the_full_package_have_every_name():
    text = stub_file().read_text()
    # The version is set where the package is made, and no stub names it.
    assert [p for p in problems(in_stubs(text)) if p != "no .__version__"] == []


# --- The check itself ----------------------------------------------------------------------------


def test_the_check_finds_what_is_missing_and_what_takes_other_arguments():
    complete = {f"{owner}.{name}": "" for owner, name in wanted()}
    assert problems(complete) == []
    short = {k: v for k, v in complete.items() if k != "IExecutionContext.execute_async_v3"}
    assert problems(short) == ["no IExecutionContext.execute_async_v3"]
    name = "IExecutionContext.set_device_memory"
    other = complete | {name: "set_device_memory(self: t.C, memory: int) -> None"}
    assert problems(other) == [f"{name} takes [(1, 1)] arguments, not 2"]
    ours = complete | {name: "set_device_memory(self: t.C, a: int, b: int, c: int = 3) -> None"}
    assert problems(ours) == []


def test_what_only_one_package_has_may_be_missing():
    complete = {f"{owner}.{name}": "" for owner, name in wanted()}
    for name in OPTIONAL:
        complete.pop(f"IExecutionContext.{name}")
    assert problems(complete) == []
