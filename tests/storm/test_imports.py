# SPDX-License-Identifier: Apache-2.0
"""What importing costs, and the guard against importing a folder under a second name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.plugins.registry import all_plugins

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the root of the repository."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("folder", ["pipeline", "plugins", "storm", "calibration", "targets"])
def test_a_folder_refuses_to_be_imported_without_its_package(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()
    done = python(f"import {folder}")
    assert done.returncode == 1
    assert f"ImportError: import stormrt.{folder}, not {folder}" in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "stormrt",
        "stormrt.storm",
        "stormrt.storm.plan",
        "stormrt.storm.hosts",
        "stormrt.plugins",
        "stormrt.plugins.spec",
        *(f"stormrt.plugins.{spec.torch_name}" for spec in all_plugins().values()),
    ],
)
def test_contracts_and_plans_are_read_without_pytorch_and_onnx(module: str) -> None:
    heavy = "{'torch', 'onnx', 'onnxscript', 'onnxruntime'}"
    done = python(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_the_registry_is_read_without_pytorch_and_onnx() -> None:
    done = python(
        "import sys\n"
        "from stormrt.plugins.registry import all_plugins\n"
        "print(*all_plugins(), 'torch' in sys.modules, 'onnx' in sys.modules)"
    )
    assert done.stdout.split() == [*all_plugins(), "False", "False"]


def test_every_public_name_of_the_model_is_there() -> None:
    pytest.importorskip("torch")
    import stormrt.storm

    assert all(getattr(stormrt.storm, name) is not None for name in stormrt.storm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'build_mamba'"):
        stormrt.storm.build_mamba  # noqa: B018
