# SPDX-License-Identifier: Apache-2.0
"""Fuzzes what reads text in Python by coverage: ``python -m tests.hardening.coverage_fuzz``.

``fuzz.py`` damages good files; here atheris (libFuzzer) looks for inputs that reach new code. That
pays where the parsing is Python's, ours or the standard library's, and readers take microseconds.
For files that C++ reads (ONNX, images, checkpoints) atheris sees nothing of the code.

A reader may succeed or raise ``StormrtError``. Each runs in a process of its own, which ends at
the first input that leads to anything else, to more than ``HANG_S`` seconds or to more memory than
allowed; that input is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.hardening.fuzz import MEMORY_BYTES

HANG_S = 10
LONGEST_BYTES = 16384
RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "coverage_fuzz.json"
ROOT = Path(__file__).resolve().parents[2]
READERS = (
    "manifest",
    "manifest on a device",
    "engine record",
    "report",
    "stage record",
    "recipe",
    "model card",
    "calibration table",
    "STORM plan",
    "measured times",
    "--storm",
    "--size",
    "bundle archive",
)
"""Names of ``readers.py``."""
_PACKAGES = ["stormrt", "tomllib", "tarfile", "zipfile"]
_SPECS = (
    b"keep=0.5",
    b"keep=0.5,stage=2,block=1,unit=window,mode=merge,restore=stage,host=random",
    b"flops=0.75,steps=2,policy=early",
    b"latency<=2.5,file=times.json,batch=1",
)
_SIZES = (b"480x640", b"224")


def _run_here(name: str, seconds: int, seed: int, work: Path) -> None:
    """Fuzz one reader; never returns."""
    import atheris

    import stormrt

    with atheris.instrument_imports(include=_PACKAGES):
        # All of them: readers import some only when they are called.
        for module in pkgutil.walk_packages(stormrt.__path__, "stormrt."):
            importlib.import_module(module.name)
    import torch

    from tests.hardening.corpus import make_corpus
    from tests.hardening.readers import readers
    from tests.pipeline.support import small_variants

    torch.set_num_threads(1)
    with small_variants():
        corpus = make_corpus(work)
        seeds = {
            "report": corpus.reports,
            "stage record": corpus.records,
            "recipe": corpus.recipes,
            "model card": corpus.cards,
            "calibration table": corpus.tables,
            "STORM plan": corpus.plans[:2],
            "measured times": corpus.measured,
            "--storm": _SPECS,
            "--size": _SIZES,
            "bundle archive": corpus.archives,
        }.get(name, corpus.manifests)
        (reader,) = [r for r in readers(corpus) if r.name == name]
        folder = work / "read"
        folder.mkdir()
        fuzz_here(reader.read, seeds, folder / reader.file, seconds, seed, work)


def fuzz_here(
    read: Callable[[Path], object],
    seeds: Sequence[bytes],
    file: Path,
    seconds: int,
    seed: int,
    work: Path,
) -> None:
    """Fuzz a function that takes a file, in this process; never returns.

    Args:
        read: The function.
        seeds: Good contents.
        file: Where contents are written.
        seconds: How long.
        seed: Of the mutations.
        work: A folder; what fails is kept there, in a file ``crash-...`` or ``timeout-...``.
    """
    import atheris

    from stormrt.errors import StormrtError

    start = work / "seeds"
    start.mkdir()
    for index, content in enumerate(seeds):
        (start / str(index)).write_bytes(content)

    def one(content: bytes) -> None:
        file.write_bytes(content)
        try:
            read(file)
        except StormrtError as error:
            if not error.what:
                raise ValueError("a message that says nothing") from error

    arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG_S}"]
    arguments += [f"-max_len={LONGEST_BYTES}", f"-rss_limit_mb={MEMORY_BYTES >> 20}"]
    arguments += ["-print_final_stats=1", f"-artifact_prefix={work}/", str(start)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def run_reader(name: str, seconds: int, seed: int, keep: Path) -> dict[str, object]:
    """Fuzz one reader in a process of its own, and say what came of it."""
    # In memory: every case is a file.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stormrt-coverage-", dir=memory) as work:
        command = [sys.executable, "-W", "ignore", "-m", "tests.hardening.coverage_fuzz"]
        command += [f"--reader={name}", "--seconds", str(seconds), "--seed", str(seed)]
        done = subprocess.run(
            [*command, "--work", work],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # atheris tells errors on one, libFuzzer on the other
            text=True,
            errors="replace",
            timeout=seconds + 300,
            check=False,
        )
        return result_of(name, done.returncode, done.stdout, Path(work), keep)


def result_of(name: str, code: int, told: str, work: Path, keep: Path) -> dict[str, object]:
    """What libFuzzer has told of a reader; inputs that failed are copied to ``keep``."""
    bad = sorted(p for kind in ("crash-*", "timeout-*", "oom-*") for p in work.glob(kind))
    failures = [told[-2000:]] if code or bad else []
    if failures:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name.strip('-').replace(' ', '_')}.log").write_text(told)
        for path in bad:
            (keep / f"{name.strip('-').replace(' ', '_')}.{path.name}").write_bytes(
                path.read_bytes()
            )
    covered = re.findall(r"\bcov: (\d+)", told) or ["0"]
    executed = re.search(r"number_of_executed_units:\s*(\d+)", told)
    peak = re.search(r"peak_rss_mb:\s*(\d+)", told)
    return {
        "reader": name,
        "executed": int(executed[1]) if executed else 0,
        "covered_by_seeds": int(covered[0]),
        "covered": int(covered[-1]),
        "peak_mib": int(peak[1]) if peak else 0,
        "failures": failures,
    }


def main() -> int:
    """Fuzz, and say what was found."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="For each reader.")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--reader", choices=READERS, help="This one alone.")
    parser.add_argument("--out", type=Path, help=f"JSON to write, such as {RESULT.name}.")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "stormrt-fuzz")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "little")
    if options.work is not None:
        _run_here(options.reader, options.seconds, seed, options.work)
    results = []
    for name in [options.reader] if options.reader else READERS:
        results.append(run_reader(name, options.seconds, seed, options.keep))
        one = results[-1]
        sys.stderr.write(
            f"{name:<22} {one['executed']:>8} inputs, {one['covered_by_seeds']} to "
            f"{one['covered']} edges, {len(one['failures'])} failures\n"
        )
        for failure in one["failures"]:
            sys.stderr.write(f"{failure}\n")
    if options.out is not None:
        document = {
            "schema_version": 1,
            "command": f"python -m tests.hardening.coverage_fuzz --seconds {options.seconds}",
            "seed": seed,
            "executed": sum(one["executed"] for one in results),
            "failures": sum(len(one["failures"]) for one in results),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("atheris", "pydantic")},
            "readers": results,
        }
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any(one["failures"] for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
