# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it runs where no checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
IGNORED = shutil.ignore_patterns(
    ".git", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", ".venv", ".tools", "shared"
)

pytestmark = pytest.mark.skipif(
    find_spec("setuptools") is None or find_spec("pip") is None,
    reason="without setuptools and pip no wheel can be built offline",
)


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves its files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=IGNORED)
    if not (source / "README.md").exists():
        (source / "README.md").write_text("stormrt\n")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    run(*PIP, "wheel", ".", *options, cwd=source)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_recipe_as_a_real_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        entries = {i.filename: i for i in archive.infolist()}
    suffixes = (
        ".py",
        ".toml",
        ".hpp",
        ".safetensors",
        ".json",
        ".template",
    )  # some are of one folder only
    for folder in ("pipeline", "plugins", "storm", "calibration", "targets", "models", "runtime"):
        wanted = [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
        assert wanted
        for path in wanted:
            name = f"stormrt/{path.relative_to(ROOT)}"
            assert name in entries, f"{name} is not in the wheel"
            assert entries[name].file_size == path.stat().st_size, name
    links = [n for n, i in entries.items() if (i.external_attr >> 28) == 0xA]
    assert links == []
    assert "stormrt/py.typed" in entries


def test_the_wheel_holds_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"stormrt"}
    assert not [n for n in names if "test" in n or n.endswith(".pyc") or "benchmark" in n]


def test_the_installed_wheel_runs_outside_the_checkout(wheel, tmp_path):
    place = tmp_path / "site"
    run(
        *PIP, "install", "--no-deps", "--no-index", "--target", str(place), str(wheel), cwd=tmp_path
    )
    main = "import sys; sys.argv[0] = 'stormrt'; from stormrt.pipeline.cli.main import main; main()"
    out = run(
        sys.executable, "-P", "-c", main, "targets", "list", cwd=tmp_path, PYTHONPATH=str(place)
    )
    assert "t4" in out
    assert "orin-agx-64g" in out
    where = run(
        sys.executable,
        "-P",
        "-c",
        "import stormrt.targets; print(stormrt.targets.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(place),
    )
    assert Path(where.strip()).is_relative_to(place)


def test_a_checkout_without_its_links_says_so(tmp_path):
    package = tmp_path / "stormrt"
    package.mkdir()
    shutil.copyfile(ROOT / "stormrt" / "__init__.py", package / "__init__.py")
    (package / "pipeline").write_text("../pipeline")  # what git makes of a link on Windows
    done = subprocess.run(
        [sys.executable, "-c", "import stormrt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "should be links to" in done.stderr
    assert "core.symlinks true" in done.stderr
