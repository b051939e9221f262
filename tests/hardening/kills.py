# SPDX-License-Identifier: Apache-2.0
"""Disturbs builds at random moments: ``python -m tests.hardening.kills --kills 50``.

Builds of a small model (for a T4 by TensorRT-RTX, where that is installed) run in children of a
process that has imported everything, and are disturbed:

- ``kill``: SIGKILL to the build and all that it started; every second one over an earlier build;
- ``interrupt``, ``terminate``: SIGINT and SIGTERM;
- ``full``: no space is left for one file after the other, and on file systems of several sizes;
- ``together``: two builds into one folder.

After each the folder holds no half file, and the next build completes, skips the stages that had
been done, and gives the bytes of a build that nobody disturbed.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from stormrt.pipeline.probe import installed_version
from tests.pipeline.kill_driver import MODULES
from tests.pipeline.support import CLASSES, SMALL, digest, make_photographs, small_variants

HAS_RTX = installed_version("tensorrt-rtx") is not None
TARGET = "t4" if HAS_RTX else "orin-nano-8g"
RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kills.json"
WORK = ".stormrt"
LIMIT_S = 120.0
_MESSAGES = {
    signal.SIGINT: (130, "interrupted; nothing that was built before is lost"),
    signal.SIGTERM: (143, "terminated; nothing that was built before is lost"),
}


@dataclass(frozen=True)
class Run:
    """A build that is under way."""

    process: int
    log: Path
    out: Path

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        raise AssertionError(f"a build hung: {self.log.read_text()}")

    def stages(self) -> dict[str, str]:
        """What it did with each stage, of one that has ended well."""
        text = self.log.read_text()
        return dict(json.loads(text[text.index("\n{") :])["stages"])


class Builder:
    """Starts builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photographs = make_photographs(folder / "photographs")
        self._runs = 0
        for name in (*MODULES, "stormrt.pipeline.device_build", "stormrt.pipeline.report"):
            importlib.import_module(name)

    def start(self, out: Path, storm: str = "keep=0.5,stage=2", full: str | None = None) -> Run:
        """Start a build, in a session of its own.

        Args:
            out: Its folder.
            storm: Its plan.
            full: No space is left for the file of this name ("folder/name").
        """
        self._runs += 1
        log = self.folder / f"{self._runs}.log"
        arguments = ["build", "--model", SMALL, "--target", TARGET, "--classes", str(CLASSES)]
        arguments += ["--size", "32x48", "--storm", storm, "--photos", str(self.photographs)]
        arguments += ["--out", str(out), "--json"]
        ready, told = os.pipe()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                os.setsid()
                file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                os.write(2, b"\n")
                if full is not None:
                    _leave_no_space_for(full)
                os.write(told, b".")
                from stormrt.pipeline.cli.main import main

                sys.argv = ["stormrt", *arguments]
                with small_variants():
                    main()
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        return Run(process, log, out)

    def build(self, out: Path, storm: str = "keep=0.5,stage=2") -> Run:
        """A build that nobody disturbs, done."""
        run = self.start(out, storm)
        code = run.wait()
        assert code == 0, run.log.read_text()
        return run


def _leave_no_space_for(ending: str) -> None:
    from stormrt.pipeline import files

    real = files.atomic_path

    @contextmanager
    def atomic_path(path: Path) -> Iterator[Path]:
        with real(path) as temporary:
            yield temporary
            if str(path).endswith(ending):
                content = temporary.read_bytes()
                temporary.write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))

    for module in list(sys.modules.values()):
        if getattr(module, "atomic_path", None) is real:
            module.atomic_path = atomic_path  # type: ignore[attr-defined]


def published(out: Path) -> dict[str, str]:
    """Digests of what a build has published."""
    if not out.is_dir():
        return {}
    return {p.name: digest(p) for p in sorted(out.iterdir()) if p.is_file()}


def recorded(out: Path, whole: Undisturbed) -> set[str]:
    """Stages that are done by their records, those of the earlier build not among them."""
    done = set()
    for name in ("golden", "export", "precision", "lower", "engine", "validate"):
        record, before = out / WORK / f"{name}.json", whole.earlier / WORK / f"{name}.json"
        if record.is_file() and not (
            before.is_file() and record.read_bytes() == before.read_bytes()
        ):
            done.add(name)
    return done


def leftovers(out: Path) -> list[str]:
    """Temporary files."""
    return [str(p.relative_to(out)) for p in out.rglob(".*.tmp")]


@dataclass(frozen=True)
class Undisturbed:
    """A build to compare with, and an earlier one of something else."""

    files: dict[str, str]
    seconds: float
    earlier: Path
    earlier_files: dict[str, str]


def undisturbed(builder: Builder) -> Undisturbed:
    """Make both."""
    out, earlier = builder.folder / "undisturbed", builder.folder / "earlier"
    builder.build(earlier, "keep=1,stage=2")
    start = time.perf_counter()
    builder.build(out)
    seconds = time.perf_counter() - start
    return Undisturbed(published(out), seconds, earlier, published(earlier))


def recover(builder: Builder, out: Path, whole: Undisturbed) -> list[str]:
    """Build again; the stages that were skipped.

    Everything that had been done must be among them, and the bytes must be the undisturbed ones.
    """
    done = recorded(out, whole)
    stages = builder.build(out).stages()
    skipped = [name for name, status in stages.items() if status == "skipped"]
    assert done <= set(skipped), f"done before: {sorted(done)}; skipped: {skipped}"
    found = published(out)
    unlike = [n for n in {**found, **whole.files} if found.get(n) != whole.files.get(n)]
    assert unlike == [], "these are not the files of an undisturbed build"
    assert leftovers(out) == []
    return skipped


def kill(builder: Builder, whole: Undisturbed, share: float, index: int) -> dict[str, object]:
    """SIGKILL after a share of a build's time."""
    out = builder.folder / f"kill{index}"
    over = index % 2 == 1
    if over:
        shutil.copytree(whole.earlier, out)
    run = builder.start(out)
    time.sleep(share * whole.seconds)
    os.killpg(run.process, signal.SIGKILL)
    code = run.wait()
    # The work folder is the earlier build's until a stage replaces a record of it.
    now = published(out)
    for name, sha256 in now.items():
        assert sha256 in (whole.files.get(name), whole.earlier_files.get(name)), (
            f"{name} is no file"
        )
    unlike = [n for n, d in whole.earlier_files.items() if now.get(n) != d] if over else list(now)
    stages = recorded(out, whole)
    if not {"validate"} <= stages:
        assert unlike == [], "published files changed before everything was made"
    skipped = recover(builder, out, whole)
    shutil.rmtree(out)
    return {
        "after_s": round(share * whole.seconds, 3),
        "killed": code == -signal.SIGKILL,
        "over_an_earlier_build": over,
        "skipped_by_the_next_build": skipped,
    }


def stop(
    builder: Builder, whole: Undisturbed, number: signal.Signals, share: float, index: int
) -> dict[str, object]:
    """SIGINT or SIGTERM after a share of a build's time."""
    out = builder.folder / f"{number.name}{index}"
    shutil.copytree(whole.earlier, out)
    run = builder.start(out)
    time.sleep(max(0.05, share * whole.seconds))
    os.kill(run.process, number)
    code = run.wait()
    log = run.log.read_text()
    wanted, message = _MESSAGES[number]
    assert code in (wanted, 0), log
    assert "Traceback" not in log, log
    assert leftovers(out) == []
    if code == wanted:
        assert log.count(message) == 1, log
    if not {"validate"} <= recorded(out, whole):
        assert published(out) == whole.earlier_files
    skipped = recover(builder, out, whole)
    shutil.rmtree(out)
    return {
        "signal": number.name,
        "after_s": round(share * whole.seconds, 3),
        "exit_code": code,
        "skipped_by_the_next_build": skipped,
    }


def written(builder: Builder) -> list[str]:
    """The files that a build writes, in that order, by folder and name."""
    out = builder.folder / "undisturbed"
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "lock"]
    files.sort(key=lambda p: p.stat().st_mtime_ns)
    return [f"{p.parent.name}/{p.name}" for p in files]


def fill_each(builder: Builder, whole: Undisturbed, count: int | None) -> list[dict[str, object]]:
    """No space for one file after the other (so many of them, or all), in one folder."""
    out = builder.folder / "full" / "undisturbed"
    outcomes: list[dict[str, object]] = []
    names = written(builder)
    step = max(1, len(names) // (count or len(names)))
    for name in names[::step]:
        run = builder.start(out, full=name)
        code, log = run.wait(), run.log.read_text()
        assert code == 2, f"{name}: {log}"
        assert "could not write a file" in log, log
        assert "No space left on device" in log, log
        assert "Traceback" not in log
        assert leftovers(out) == []
        assert not (out.parent / name).exists(), f"{name} is half written"
        outcomes.append({"file": name, "exit_code": code})
    recover(builder, out, whole)
    return outcomes


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return mounted.returncode == 0


def fill_disks(builder: Builder, whole: Undisturbed, count: int) -> list[dict[str, object]]:
    """Builds on file systems that are too small, which then grow."""
    folder = builder.folder / "disk"
    folder.mkdir(exist_ok=True)
    needed = sum(p.stat().st_size for p in (builder.folder / "undisturbed").rglob("*"))
    outcomes: list[dict[str, object]] = []
    for index in range(count):
        size = int(needed * (index + 0.5) / count)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        subprocess.run(mount, check=True)
        try:
            out = folder / "out"
            run = builder.start(out)
            code, log = run.wait(), run.log.read_text()
            assert code == 2, f"{size} bytes: {log}"
            assert "No space left on device" in log, log
            assert "Traceback" not in log
            assert leftovers(out) == []
            done = sorted(recorded(out, whole))
            subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
            recover(builder, out, whole)
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        outcomes.append({"bytes": size, "of": needed, "exit_code": code, "done_before": done})
    return outcomes


def together(builder: Builder, whole: Undisturbed) -> dict[str, object]:
    """Two builds into one folder: one is refused, the other is whole."""
    out = builder.folder / "together"
    runs = [builder.start(out) for _ in range(2)]
    codes = [run.wait() for run in runs]
    assert sorted(codes) == [0, 2], [run.log.read_text() for run in runs]
    refused = runs[codes.index(2)].log.read_text()
    assert "another stormrt build is writing to this folder" in refused
    assert "Traceback" not in refused
    assert published(out) == whole.files
    return {"exit_codes": sorted(codes)}


def disturb(
    kills: int, stops: int, disks: int, files: int | None, seed: int, folder: Path
) -> dict[str, object]:
    """Everything, and what came of it."""
    rng = random.Random(seed)
    builder = Builder(folder)
    start = time.perf_counter()
    whole = undisturbed(builder)
    result: dict[str, object] = {
        "schema_version": 1,
        "command": f"python -m tests.hardening.kills --kills {kills}",
        "seed": seed,
        "model": SMALL,
        "target": TARGET,
        "undisturbed_s": round(whole.seconds, 2),
        "files": whole.files,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "tensorrt_rtx": installed_version("tensorrt-rtx"),
    }
    made: list[dict[str, object]] = []
    too_late = 0
    while len(made) < kills:
        outcome = kill(builder, whole, rng.uniform(0.0, 0.9), len(made))
        if not outcome.pop("killed"):  # it had ended: a busy machine made the first builds slow
            too_late += 1
            continue
        made.append(outcome)
        _say(f"kill {len(made)} of {kills}: {outcome}")
    result["kills"] = made
    result["recovered"] = len(made)
    result["too_late_to_kill"] = too_late
    signals: list[dict[str, object]] = []
    for index in range(stops):
        for number in (signal.SIGINT, signal.SIGTERM):
            signals.append(stop(builder, whole, number, rng.uniform(0.0, 1.0), index))
            _say(f"{signals[-1]}")
    result["signals"] = signals
    result["no_space_for_a_file"] = fill_each(builder, whole, files)
    _say("no space for a file: done")
    result["full_disks"] = "not run: needs the right to mount a tmpfs"
    if disks and can_mount(folder / "disk"):
        result["full_disks"] = fill_disks(builder, whole, disks)
    _say("full disks: done")
    result["together"] = together(builder, whole)
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb builds, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=10, help="Of SIGINT and of SIGTERM, each.")
    parser.add_argument("--disks", type=int, default=8, help="Sizes of a disk that is too small.")
    parser.add_argument("--files", type=int, help="That have no space. Default: all.")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--out", type=Path, help=f"JSON to write, such as {RESULT.name}.")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "little")
    _say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="stormrt-kills-") as folder:
        result = disturb(
            options.kills, options.stops, options.disks, options.files, seed, Path(folder)
        )
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
