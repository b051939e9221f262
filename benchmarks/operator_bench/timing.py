# SPDX-License-Identifier: Apache-2.0
"""How calls are timed: CUDA events, in rounds in which the candidates take turns.

A clock that drifts, or a neighbour that heats the machine, slows every candidate of a round down
and not the one that came last. Three states are timed:

- ``graph``: replays of a CUDA graph with some calls one behind the other, as an engine runs them.
  The operands of the call before are as warm in L2 as their size allows; each timed replay has
  one before it that is not timed.
- ``no_graph``: the same calls enqueued one by one from Python. Short kernels show the cost of
  enqueueing here.
- ``cold``: in a graph, before each call a buffer of four times L2 is written and then read. The
  read leaves L2 full of lines that need no writing back, which the call would otherwise pay for.
  A graph of the flushes alone is replayed in the same round, and its time is subtracted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ROUNDS = 15
CALLS = 20
COLD_CALLS = 10
LONG_MS = 4.0
"""Calls of one replay are cut down so that it takes no more than about this."""

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Replay:
    """Some enqueued calls: what enqueues them, and how many they are."""

    run: Callable[[], None]
    calls: int


def capture(work: Work, times: int = 1) -> torch.cuda.CUDAGraph:
    """Capture some repetitions of a call, after one outside (libraries initialise then)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph


def once_ms(run: Callable[[], object]) -> float:
    """Time between an event before and one after, in ms."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def calls_for(work: Work, wanted: int) -> int:
    """Calls of one replay: as many as wanted, fewer of a call that takes long."""
    work()
    torch.cuda.synchronize()
    return max(2, min(wanted, int(LONG_MS / max(once_ms(work), 1e-3))))


def in_graph(work: Work, wanted: int = CALLS) -> Replay:
    """Calls as one CUDA graph."""
    calls = calls_for(work, wanted)
    return Replay(capture(work, calls).replay, calls)


def without_graph(work: Work, wanted: int = CALLS) -> Replay:
    """Calls enqueued one by one."""
    calls = calls_for(work, wanted)

    def run() -> None:
        for _ in range(calls):
            work()

    return Replay(run, calls)


def take_turns(replays: Mapping[str, Replay], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Time of one call in ms, for every replay and round. The first to go changes each round."""
    names = list(replays)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            replay = replays[name]
            replay.run()
            times[name].append(once_ms(replay.run) / replay.calls)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread of rounds, in ms."""
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return {
        "median": round(statistics.median(ordered), 6),
        "p10": round(ordered[tenth], 6),
        "p90": round(ordered[-1 - tenth], 6),
    }


class Flush:
    """Empties L2: writes a buffer of four times its size, then reads it."""

    def __init__(self) -> None:
        self.l2_bytes: int = torch.cuda.get_device_properties().L2_cache_size
        self.buffer = torch.zeros(self.l2_bytes, dtype=torch.float32, device="cuda")
        self.sink = torch.zeros((), device="cuda")

    def __call__(self) -> None:
        """Enqueue both."""
        self.buffer.fill_(1.0)
        torch.sum(self.buffer, dim=0, out=self.sink)


def time_cold(
    works: Mapping[str, Work], flush: Flush, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time of one call in ms with nothing of its operands in L2, for every candidate and round."""
    replays = {"": in_graph(flush, COLD_CALLS)}
    for name, work in works.items():

        def flushed(work: Work = work) -> None:
            flush()
            work()

        replays[name] = in_graph(flushed, COLD_CALLS)
    times = take_turns(replays, rounds)
    base = times.pop("")
    return {name: [t - b for t, b in zip(each, base, strict=True)] for name, each in times.items()}


def time_states(
    works: Mapping[str, Work], flush: Flush, eager: Mapping[str, Work] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Time candidates in the three states, each in rounds of its own.

    Args:
        works: What is timed.
        flush: Empties L2.
        eager: What is timed without a graph instead, where a candidate is called in another way.

    Returns:
        Candidate -> state -> median and spread in ms.
    """
    loose = {**works, **(eager or {})}
    states = {
        "graph": take_turns({name: in_graph(work) for name, work in works.items()}),
        "no_graph": take_turns({name: without_graph(work) for name, work in loose.items()}),
        "cold": time_cold(works, flush),
    }
    return {
        name: {state: summary(times[name]) for state, times in states.items()} for name in works
    }


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy.

    By a kernel, not by ``copy_``: that is a memcpy, which gave 2.7 TB/s on an H200 of 4.8 TB/s.
    """
    source = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    graph = capture(lambda: torch.neg(source, out=target), 4)
    times = take_turns({"copy": Replay(graph.replay, 4)})["copy"]
    return 2 * source.numel() * source.element_size() / (statistics.median(times) * 1e-3)


def copy_of(moved: int) -> Work:
    """A copy by a kernel that reads half of some bytes and writes as many."""
    source = torch.zeros(max(1, moved // 8), dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return lambda: torch.neg(source, out=target)
