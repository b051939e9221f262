# SPDX-License-Identifier: Apache-2.0
"""Every call of full TensorRT's Python API, checked by mypy against the stubs of TensorRT 10.13.

The builder and the runner are written against protocols (``engine_api``, ``trt_api``). Here each
protocol is replaced by TensorRT's own class, in a copy of the very modules that a device runs, and
mypy reads that copy. What can go wrong: a method that is not there, an argument of another type or
name, a result that may be None or has another type. TensorRT-RTX's own calls are left as they are.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.pipeline.device import script
from tests.helpers.native import ROOT
from tests.helpers.stubs import repaired_stubs

CLASSES = {
    "stormrt.pipeline.engine_api": {
        "Builder": "Builder",
        "BuilderConfig": "IBuilderConfig",
        "HostMemory": "IHostMemory",
        "Logger": "ILogger",
        "Network": "INetworkDefinition",
        "OnnxParser": "OnnxParser",
        "OptimizationProfile": "IOptimizationProfile",
        "ParserError": "ParserError",
        "PluginRegistry": "IPluginRegistry",
        "Tensor": "ITensor",
        "TimingCache": "ITimingCache",
    },
    "stormrt.runtime.trt_api": {
        "CudaEngine": "ICudaEngine",
        "ExecutionContext": "IExecutionContext",
        "Runtime": "Runtime",
    },
}
"""Our protocols, and the classes that they describe."""
MODULES = ("EngineApi", "RuntimeApi")
"""Protocols of the module itself: each member becomes TensorRT's."""
CHECKED = (
    "stormrt.pipeline.engine",
    "stormrt.pipeline.engine_api",
    "stormrt.pipeline.engine_config",
    "stormrt.pipeline.engine_progress",
    "stormrt.runtime",
)
TARGETS = 'from typing import Literal\nRuntimeName = Literal["tensorrt", "tensorrt_rtx"]\n'
SETTINGS = """
[mypy]
strict = true
python_version = 3.11
follow_imports = silent

[mypy-tensorrt.*,tensorrt_bindings.*]
ignore_errors = true

[mypy-stormrt.runtime.manifest_record]
ignore_missing_imports = true
"""


def with_real_classes(name: str, source: str) -> str:
    """A module in which protocols are TensorRT's classes, line for line as long as before."""
    lines, names = source.splitlines(), CLASSES[name]
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            lines[node.lineno - 1] += "; import tensorrt as _trt"
        elif isinstance(node, ast.ClassDef) and node.name in names:
            replace(lines, node, f"{node.name} = _trt.{names[node.name]}")
        elif isinstance(node, ast.ClassDef) and node.name in MODULES:
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    own = member.target.id
                    if own != "__version__":
                        replace(lines, member, f"    {own}: type[_trt.{own}]")
    return "\n".join(lines) + "\n"


def replace(lines: list[str], node: ast.stmt, text: str) -> None:
    assert node.end_lineno is not None
    lines[node.lineno - 1 : node.end_lineno] = [text] + [""] * (node.end_lineno - node.lineno)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The device's modules with TensorRT's own classes, and the stubs beside them."""
    root = repaired_stubs(tmp_path_factory.mktemp("typed"))
    sources = script.modules()
    assert set(CLASSES) <= set(sources)
    packages = {name.rpartition(".")[0] for name in sources}
    for name, source in sources.items():
        parts = name.split(".")
        path = root.joinpath(*parts) / "__init__.py" if name in packages else None
        path = path or root.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(with_real_classes(name, source) if name in CLASSES else source)
    (root / "stormrt/targets").mkdir()
    (root / "stormrt/targets/__init__.py").write_text(TARGETS)
    (root / "mypy.ini").write_text(SETTINGS)
    return root


def check(root: Path) -> list[str]:
    """What mypy says of the modules that call TensorRT."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache/stubs")]
    for name in CHECKED:
        command += ["-p", name]
    done = subprocess.run(
        command, cwd=root, env={"PATH": "", "MYPYPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if " error: " in line]


def test_every_call_of_the_full_api_agrees_with_the_stubs(tree):
    assert check(tree) == []


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("pipeline/engine.py", "parse_from_file(str(", "parse_file(str("),
        ("pipeline/engine_config.py", "config.clear_flag(tf32)", "config.clear_flag('TF32')"),
        ("pipeline/engine_config.py", "set_timing_cache(cache, False)", "set_timing_cache(cache)"),
        ("runtime/program.py", "execute_async_v3(stream)", "execute_async_v3()"),
        ("runtime/program.py", "engine.num_io_tensors", "engine.num_bindings"),
    ],
)
def test_a_call_that_full_tensorrt_has_not_is_found(tree, module, before, after):
    path = tree / "stormrt" / module
    good = path.read_text()
    assert before in good
    try:
        path.write_text(good.replace(before, after))
        assert [line for line in check(tree) if module in line]
    finally:
        path.write_text(good)
