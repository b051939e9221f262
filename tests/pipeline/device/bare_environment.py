# SPDX-License-Identifier: Apache-2.0
"""A virtual environment with a few packages of this one, made without a network.

It has no pip and no system packages: what was not put there cannot be imported.
"""

from __future__ import annotations

import re
import sys
import venv
from importlib import metadata
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
RTX = "tensorrt-rtx-cu13"


def core_requirements() -> tuple[str, ...]:
    """What pyproject.toml says that the device phase needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


def closure(requirements: tuple[str, ...]) -> set[str]:
    """Distributions that requirements bring, by normalised names, without their extras."""
    found: set[str] = set()
    wanted = [Requirement(text) for text in requirements]
    while wanted:
        requirement = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in found:
            found.add(name)
            wanted += map(Requirement, metadata.requires(name) or ())
    return found


def make_environment(folder: Path, distributions: set[str], *, with_stormrt: bool) -> Path:
    """Make the environment with links to distributions of this one.

    Returns:
        Its Python.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for name in distributions:
        files = metadata.files(name)
        assert files, f"{name} does not say what it consists of"
        for top in {PurePosixPath(f).parts[0] for f in files} - {"..", "__pycache__"}:
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
    if with_stormrt:
        (site / "stormrt").symlink_to(ROOT / "stormrt")
    return folder / "bin" / "python"
