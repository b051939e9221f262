# SPDX-License-Identifier: Apache-2.0
"""Fuzzes every reader: ``python -m tests.hardening.fuzz --cases 10000``.

A reader may succeed or raise ``StormrtError``. Anything else is a failure: another exception, a
crash, more than ``HANG_S`` seconds, or an allocation beyond ``MEMORY_BYTES`` even where the reader
turned it into an error, since a machine with more memory would have given it.

Each reader runs in a child that is forked after everything is imported, with a limit on its address
space. The parent watches its progress. A file that made a reader fail is kept (``--keep``).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

MEMORY_BYTES = 2 << 30
"""What a process that reads may take, with everything that it has imported."""
HANG_S = 20.0
RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz.json"
_VERSIONS = (
    "hypothesis",
    "numpy",
    "onnx",
    "onnxruntime",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
)


@dataclass
class Result:
    """What came of a reader's cases."""

    reader: str
    cases: int = 0
    read: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mib: int = 0
    """Of the whole process, with what was imported."""


def _memory() -> tuple[int, int]:
    """Address space and resident memory of this process, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * mmap.PAGESIZE, int(pages[1]) * mmap.PAGESIZE


def _limit_memory() -> None:
    total, resident = _memory()
    limit = total + max(0, MEMORY_BYTES - resident)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _ran_out(error: BaseException) -> bool:
    """Whether memory was refused, on the way to an error."""
    words = ("can't allocate memory", "bad_alloc", "bad allocation", "Failed to allocate memory")
    return any(
        isinstance(e, MemoryError) or any(word in str(e) for word in words) for e in _chain(error)
    )


def _name_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tests/" not in f.filename] or frames
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
    return f"{type(error).__name__}: {str(error)[:120]!r} at {places}"


def _child(reader, cases: int, seed: int, folder: Path, progress: mmap.mmap, keep: Path) -> None:
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    from stormrt.errors import StormrtError

    result = Result(reader.name)
    path = folder / reader.file
    seen: set[str] = set()

    def fail(error: BaseException, what: str) -> None:
        name = f"{what}{_name_of(error)}"
        if name.rpartition(" at ")[2] not in seen:
            seen.add(name.rpartition(" at ")[2])
            result.failures.append(name)
            keep.mkdir(parents=True, exist_ok=True)
            kept = keep / f"{reader.name.replace(' ', '_').strip('-')}.{len(seen)}.{reader.file}"
            shutil.copyfile(path, kept)

    def case(content: bytes) -> None:
        if result.cases >= cases:
            return
        path.write_bytes(content)
        result.cases += 1
        progress[:8] = struct.pack("<Q", result.cases)
        start = time.perf_counter()
        try:
            reader.read(path)
            result.read += 1
        except StormrtError as error:
            result.refused += 1
            if _ran_out(error):
                fail(_chain(error)[-1], "more memory than allowed: ")
            if not error.what or "Traceback" in str(error):
                fail(error, "a message that says nothing: ")
        except BaseException as error:  # noqa: BLE001 - the point of it all
            fail(error, "")
        result.slowest_s = max(result.slowest_s, time.perf_counter() - start)

    # What libraries print of bad files is no part of the result.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    _limit_memory()
    start = time.perf_counter()
    attempt = 0
    while result.cases < cases and attempt < 200:
        decorated = given(reader.files)(case)
        decorated = settings(
            max_examples=min(500, cases - result.cases),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(decorated)
        hypothesis.seed(seed + attempt)(decorated)()
        attempt += 1
    result.seconds = round(time.perf_counter() - start, 1)
    result.slowest_s = round(result.slowest_s, 2)
    result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    (folder / "result.json").write_text(json.dumps(result.__dict__))


def _watch(process: int, progress: mmap.mmap) -> str | None:
    """Wait for a child; what was wrong with its end."""
    last, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else f"the process ended with {code}"
        (done,) = struct.unpack("<Q", progress[:8])
        if done != last:
            last, since = done, time.monotonic()
        elif time.monotonic() - since > HANG_S and done:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return f"hung for more than {HANG_S:g} s"
        time.sleep(0.05)


def run_reader(reader, cases: int, seed: int, work: Path, keep: Path) -> Result:
    """All cases of one reader; a child that dies or hangs is replaced."""
    total = Result(reader.name)
    while total.cases < cases and len(total.failures) < 20:
        folder = Path(tempfile.mkdtemp(prefix="fuzz.", dir=work))
        progress = mmap.mmap(-1, 8)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                part = seed + 1_000 * total.cases
                _child(reader, cases - total.cases, part, folder, progress, keep)
                code = 0
            except BaseException:  # noqa: BLE001 - told to the parent by the exit code
                (folder / "error.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        wrong = _watch(process, progress)
        if wrong is None:
            found = Result(**json.loads((folder / "result.json").read_text()))
        else:
            (done,) = struct.unpack("<Q", progress[:8])
            found = Result(reader.name, cases=max(1, done), failures=[wrong])
            if (folder / "error.txt").exists():
                found.failures = [(folder / "error.txt").read_text()]
            keep.mkdir(parents=True, exist_ok=True)
            if (folder / reader.file).exists():
                kept = f"{reader.name.replace(' ', '_').strip('-')}.died{total.cases}.{reader.file}"
                shutil.copyfile(folder / reader.file, keep / kept)
        total.cases += found.cases
        total.read += found.read
        total.refused += found.refused
        total.failures += found.failures
        total.seconds += found.seconds
        total.slowest_s = max(total.slowest_s, found.slowest_s)
        total.peak_mib = max(total.peak_mib, found.peak_mib)
        shutil.rmtree(folder)
    return total


def fuzz(cases: int, seed: int, work: Path, keep: Path, only: Sequence[str] = ()) -> list[Result]:
    """Fuzz every reader, all together with so many cases or a few more."""
    import torch

    from tests.hardening.corpus import make_corpus
    from tests.hardening.readers import readers
    from tests.pipeline.support import small_variants

    # Threads that this process starts are not there in a forked child, which would wait for them.
    torch.set_num_threads(1)
    with small_variants():
        chosen = [r for r in readers(make_corpus(work)) if not only or r.name in only]
        whole = sum(r.weight for r in chosen)
        results = []
        for index, reader in enumerate(chosen):
            share = -(-int(cases * reader.weight * 1_000) // int(whole * 1_000))
            results.append(run_reader(reader, max(2, share), seed + 10**6 * index, work, keep))
            one = results[-1]
            sys.stderr.write(
                f"{one.reader:<26} {one.cases:6} cases, {one.read:6} read, {one.refused:6} refused"
                f", {len(one.failures)} failures, {one.seconds:6.1f} s, slowest "
                f"{one.slowest_s:5.2f} s, peak {one.peak_mib} MiB\n"
            )
            for failure in one.failures:
                sys.stderr.write(f"    {failure}\n")
            sys.stderr.flush()
        return results


def document(results: list[Result], seed: int) -> dict[str, object]:
    """What is written to the results' file."""
    return {
        "schema_version": 1,
        "command": "python -m tests.hardening.fuzz --cases N",
        "seed": seed,
        "cases": sum(r.cases for r in results),
        "failures": sum(len(r.failures) for r in results),
        "memory_limit_mib": MEMORY_BYTES >> 20,
        "hang_s": HANG_S,
        "peak_mib": max(r.peak_mib for r in results),
        "seconds": round(sum(r.seconds for r in results), 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _VERSIONS},
        "readers": [r.__dict__ for r in results],
    }


def main() -> int:
    """Fuzz, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--reader", action="append", default=[], help="This one alone.")
    parser.add_argument("--out", type=Path, help=f"JSON to write, such as {RESULT.name}.")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "stormrt-fuzz")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "little")
    sys.stderr.write(f"seed {seed}\n")
    with tempfile.TemporaryDirectory(prefix="stormrt-fuzz-") as work:
        results = fuzz(options.cases, seed, Path(work), options.keep, options.reader)
    made = document(results, seed)
    if options.out is not None:
        options.out.write_text(json.dumps(made, indent=2) + "\n")
    return 1 if made["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
