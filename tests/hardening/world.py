# SPDX-License-Identifier: Apache-2.0
"""Where faults are made: builds of a small model, good files to spoil, and the command line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from stormrt.pipeline.build import BuildRequest, build
from stormrt.pipeline.cli.main import main
from stormrt.pipeline.schema import MANIFEST_NAME
from stormrt.plugins import toolchain
from tests.pipeline.support import CLASSES, ROOT, SMALL, digest, make_photographs, small_variants

HEIGHT, WIDTH = 32, 48
STORM = "keep=0.5,stage=2"
ORIN, T4 = "orin-nano-8g", "t4"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


class World:
    """A folder with everything that faults are made of.

    Args:
        folder: New and empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = contextlib.ExitStack()
        """What a fault changes, until its command is done."""
        self.photographs = make_photographs(folder / "photographs")
        self._copies = 0

    def run(self, arguments: list[object]) -> Outcome:
        """``stormrt ARGUMENTS`` in this process, by its own entry; then the stack is closed."""
        out, err = io.StringIO(), io.StringIO()
        code: object = None
        with (
            self.stack,
            small_variants(),
            mock.patch.object(sys, "argv", ["stormrt", *map(str, arguments)]),
            mock.patch.dict(os.environ, {"NO_COLOR": "1", "COLUMNS": "200"}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as stopped:
                code = stopped.code
        number = code if isinstance(code, int) else int(code is not None)
        return Outcome(number, out.getvalue(), err.getvalue())

    def new(self, name: str) -> Path:
        """A path that does not exist yet, in a folder of its own."""
        self._copies += 1
        folder = self.folder / str(self._copies)
        folder.mkdir()
        return folder / name

    def write(self, name: str, content: bytes | str) -> Path:
        """A new file."""
        path = self.new(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def options(self, out: Path | None = None, **changes: object) -> list[object]:
        """``stormrt build`` for an Orin; a change to None leaves an option out."""
        values: dict[str, object] = {
            "model": SMALL,
            "target": ORIN,
            "out": out or self.new("out"),
            "classes": CLASSES,
            "storm": STORM,
            "size": f"{HEIGHT}x{WIDTH}",
            "photos": self.photographs,
            **changes,
        }
        pairs = [(f"--{k.replace('_', '-')}", v) for k, v in values.items() if v is not None]
        return ["build", *(part for pair in pairs for part in pair)]

    def _build(self, target: str) -> Path:
        out = self.folder / f"made-{target}"
        with small_variants():
            build(
                BuildRequest(
                    model=SMALL,
                    target=target,
                    out=out,
                    num_classes=CLASSES,
                    storm=STORM,
                    height=HEIGHT,
                    width=WIDTH,
                    photographs=self.photographs,
                )
            )
        return out

    @cached_property
    def _orin(self) -> Path:
        return self._build(ORIN)

    @cached_property
    def _t4(self) -> Path:
        return self._build(T4)

    def bundle(self) -> Path:
        """A copy of a bundle for an Orin, without an engine."""
        return shutil.copytree(self._orin, self.new("bundle"))

    def with_engine(self) -> Path:
        """A copy of a build for a T4, with its engine by TensorRT-RTX."""
        return shutil.copytree(self._t4, self.new("bundle"))

    def edit(self, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        """Change a folder's manifest."""
        path = folder / MANIFEST_NAME
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        return folder

    @cached_property
    def state(self) -> dict[str, Any]:
        """Weights of the small model."""
        from stormrt.storm import build_vmamba

        with small_variants():
            return dict(build_vmamba(SMALL, CLASSES).state_dict())

    def checkpoint(self, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
        """The weights as a file, changed."""
        import torch

        state = dict(self.state)
        change(state)
        path = self.new("weights.pth")
        torch.save({"model": state}, path)
        return path

    def table(self, **model: object) -> Path:
        """A calibration table for the bundle's model, but for some fields."""
        manifest = json.loads((self._orin / MANIFEST_NAME).read_text())
        value = {
            "schema_version": 1,
            "graph_sha256": digest(self._orin / ".stormrt" / "exported.onnx"),
            "model": {**manifest["model"], **model},
            "plan": "in words",
            "observer": "mse",
            "smoothing": {},
            "tensors": {},
            "images": [],
            "skipped": [],
            "tools": [],
        }
        return self.write("table.json", json.dumps(value))

    def recipe(self, old: str, new: str) -> Path:
        """T4's recipe with one text changed."""
        text = (ROOT / "targets" / "t4.toml").read_text()
        assert old in text
        return self.write("mine.toml", text.replace(old, new))

    def evaluate(self, data: Path, **changes: object) -> list[object]:
        """``stormrt evaluate`` of the small model."""
        options = {"model": SMALL, "classes": 2, "size": 32, "storm": STORM, "data": data}
        pairs = [(f"--{k}", v) for k, v in {**options, **changes}.items()]
        return ["evaluate", *(part for pair in pairs for part in pair)]

    def hold_lock(self, out: Path) -> None:
        """Hold an output folder as another process would."""
        work = out / ".stormrt"
        work.mkdir(parents=True, exist_ok=True)
        file = self.stack.enter_context((work / "lock").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)

    def read_only(self, folder: Path) -> None:
        """Let nobody write into a folder: by its attributes, which bind root too, or its mode."""
        folder.mkdir(parents=True, exist_ok=True)
        if not _refused(["chattr", "+i", folder]):
            self.stack.callback(subprocess.run, ["chattr", "-i", str(folder)], check=True)
        else:
            folder.chmod(0o555)
            self.stack.callback(folder.chmod, 0o755)
        try:
            (folder / "probe").write_text("")
        except OSError:
            return
        (folder / "probe").unlink()
        self._fail(errno.EROFS)

    def _fail(self, number: int) -> None:
        def mkstemp(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        self.stack.enter_context(mock.patch.object(tempfile, "mkstemp", mkstemp))
        self.stack.enter_context(mock.patch.object(Path, "mkdir", mkstemp))

    def fill_disk(self, out: Path) -> None:
        """Leave 16 KiB below a folder: on a tmpfs of its own, or by failing writes."""
        out.mkdir(parents=True, exist_ok=True)
        if not _refused(["mount", "-t", "tmpfs", "-o", "size=16k", "none", out]):
            self.stack.callback(subprocess.run, ["umount", str(out)], check=True)
            return

        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.stack.enter_context(mock.patch.object(os, "fsync", fsync))

    def without_programs(self) -> None:
        """No program can be found but g++."""
        only = self.new("bin")
        only.mkdir()
        (only / "g++").symlink_to(shutil.which("g++") or "/usr/bin/g++")
        self.stack.enter_context(mock.patch.dict(os.environ, {"PATH": str(only)}))
        self.stack.enter_context(mock.patch.object(toolchain, "_CUDA_FOLDER", str(only)))


def _refused(command: list[object]) -> bool:
    if shutil.which(str(command[0])) is None:
        return True
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    return done.returncode != 0


@contextlib.contextmanager
def new_world() -> Iterator[World]:
    """A world in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="stormrt-faults-") as folder:
        yield World(Path(folder))
