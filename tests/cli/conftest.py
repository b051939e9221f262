# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, and builds that are made once and copied by each test."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stormrt.pipeline.build import BuildRequest, build
from stormrt.pipeline.cli.main import main
from stormrt.pipeline.probe import installed_version
from tests.pipeline import support
from tests.pipeline.support import CLASSES, SMALL

HEIGHT, WIDTH = 32, 48
STORM = "keep=0.5,stage=2"


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture(autouse=True)
def _small_variants() -> Iterator[None]:
    with support.small_variants():
        yield


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs `stormrt ARGUMENTS` through its own entry; whatever it raises fails the test."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["stormrt", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return Done(code if isinstance(code, int) else int(code is not None), *captured)

    return run


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small photographs."""
    return support.make_photographs(tmp_path_factory.mktemp("photographs") / "four")


def _build(target: str, out: Path, photographs: Path) -> Path:
    request = BuildRequest(
        model=SMALL,
        target=target,
        out=out,
        num_classes=CLASSES,
        storm=STORM,
        height=HEIGHT,
        width=WIDTH,
        photographs=photographs,
    )
    with support.small_variants():
        build(request)
    return out


@pytest.fixture(scope="session")
def _t4_made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    if installed_version("tensorrt-rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: no engine can be built here")
    return _build("t4", tmp_path_factory.mktemp("t4") / "made", photographs)


@pytest.fixture(scope="session")
def _orin_made(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    return _build("orin-nano-8g", tmp_path_factory.mktemp("orin") / "made", photographs)


@pytest.fixture
def t4(_t4_made: Path, tmp_path: Path) -> Path:
    """A copy of a build for T4: an engine by TensorRT-RTX."""
    return shutil.copytree(_t4_made, tmp_path / "t4")


@pytest.fixture
def orin(_orin_made: Path, tmp_path: Path) -> Path:
    """A copy of a build for an Orin: a bundle without an engine."""
    return shutil.copytree(_orin_made, tmp_path / "orin")


@pytest.fixture
def options(photographs: Path) -> Callable[..., list[object]]:
    """Options of `stormrt build` that repeat one of the builds; None leaves one out."""

    def make(target: str, out: Path, **changes: object) -> list[object]:
        values: dict[str, object] = {
            "model": SMALL,
            "target": target,
            "out": out,
            "classes": CLASSES,
            "storm": STORM,
            "size": f"{HEIGHT}x{WIDTH}",
            "photos": photographs,
            **changes,
        }
        pairs = [(f"--{k.replace('_', '-')}", v) for k, v in values.items() if v is not None]
        return ["build", *(part for pair in pairs for part in pair)]

    return make
