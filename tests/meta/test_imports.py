# SPDX-License-Identifier: Apache-2.0
"""What may import what: the light command line, and the direction of dependencies."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "polygraphy",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
)

ALLOWED = {
    "targets": ("stormrt.targets", "stormrt.errors", "stormrt.reading", "stormrt.runtime_name"),
    "models": ("stormrt.models", "stormrt.errors", "stormrt.reading"),
    "plugins": ("stormrt.plugins", "stormrt.errors", "stormrt.locking", "stormrt.targets"),
    "storm": ("stormrt.storm", "stormrt.plugins", "stormrt.errors", "stormrt.reading"),
}
"""What each folder may import of ours. The pipeline may import everything."""


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules that are loaded once a program has ended, however it ends."""
    program = (
        "import atexit, json, sys\n"
        "names = lambda: sorted({m.partition('.')[0] for m in sys.modules})\n"
        "atexit.register(lambda: print('\\n' + json.dumps(names())))\n" + code
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


MAIN = "import sys; sys.argv[0] = 'stormrt'; from stormrt.pipeline.cli.main import main; main()"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import stormrt", ()),
        ("import stormrt.storm, stormrt.targets, stormrt.models, stormrt.pipeline.build", ()),
        ("import stormrt.pipeline.evaluation", ()),
        ("import stormrt.pipeline.device_build, stormrt.pipeline.engine", ()),
        ("import stormrt.pipeline.report_merge, stormrt.pipeline.device.script_main", ()),
        ("import stormrt.runtime", ()),
        (MAIN, ("--help",)),
        (MAIN, ("build", "--help")),
        (MAIN, ("report", "--help")),
        (MAIN, ("calibrate", "--help")),
        (MAIN, ("package", "--help")),
        (MAIN, ("evaluate", "--help")),
        (MAIN, ("targets", "list")),
    ],
)
def test_what_must_be_light_loads_none_of_the_heavy_packages(code, arguments):
    found = modules_after(code, *arguments)
    assert "stormrt" in found
    assert not found & set(HEAVY)


def test_the_check_of_lightness_sees_a_heavy_package():
    assert "onnx" in modules_after("import stormrt.pipeline.onnx_file")


def imported(source: str) -> Iterator[str]:
    """Full names of what a module imports, at its top or anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            assert node.module is not None
            if node.module == "stormrt":
                yield from (f"stormrt.{alias.name}" for alias in node.names)
            else:
                yield node.module


def breaches(folder: str, source: str) -> list[str]:
    """Imports of ours that a module of a folder may not have."""
    ours = [name for name in imported(source) if name.partition(".")[0] == "stormrt"]
    allowed = ALLOWED[folder]
    return [
        name
        for name in ours
        if name != "stormrt" and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_what_lies_below_them(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert not breaches(folder, path.read_text()), path


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("targets", "from stormrt.storm import plan"),
        ("targets", "from stormrt import plugins"),
        ("targets", "import stormrt.pipeline.files"),
        ("models", "from stormrt.storm.variants import VARIANTS"),
        ("plugins", "def f():\n    from stormrt.storm.plan import StormPlan"),
        ("storm", "if True:\n    import stormrt.targets.schema as s"),
        ("storm", "from stormrt.pipeline import build"),
    ],
)
def test_the_check_of_directions_catches_a_bad_import(folder, source):
    assert breaches(folder, source)


def test_the_check_of_directions_lets_good_imports_pass():
    good = "import torch\nfrom stormrt.errors import InputError\nfrom stormrt.plugins.spec import D"
    assert breaches("storm", good) == []
    assert breaches("plugins", good) == []


@pytest.mark.parametrize("folder", ["pipeline", "plugins", "storm", "targets", "models", "runtime"])
def test_a_folder_is_refused_under_its_short_name(folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"import stormrt.{folder}, not {folder}" in done.stderr
