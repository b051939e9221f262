# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/plugins.md, as Markdown, from benchmarks/results/.

Each takes the content of a file of results, or None where there is none. What was not measured
reads "not run".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.operator_bench import estimates

NOT_RUN = "not run"
UNTOLD = "-"
"""What a tool that was run did not tell."""
MEMCPY_SCHEMA = 1
"""The schema of results whose copy was a memcpy."""
Content = Mapping[str, Any]


def table(headings: list[str], rows: Iterable[list[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *[[str(c) for c in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def microseconds(row: Content, candidate: str, state: str) -> str:
    """A median of the operators' benchmark, in us."""
    times = row.get("times", {}).get(candidate, {})
    return f"{1e3 * times[state]['median']:.1f}" if state in times else NOT_RUN


def percent(value: float | None, digits: int = 0) -> str:
    """A share."""
    return NOT_RUN if value is None else f"{value:.{digits}%}"


def shape_of(row: Content) -> str:
    """B x D x H x W."""
    return " x ".join(map(str, row["shape"]))


def machine(content: Content) -> str:
    """The GPU, and what a large copy reached on it."""
    text = f"{content['environment']['gpu']}, copy bandwidth {content['copy_gb_s']:.0f} GB/s"
    if content["schema_version"] == MEMCPY_SCHEMA:
        text += (
            ". **In this run the copy was a memcpy and reached little more than half of the "
            "H200's nominal 4.8 TB/s, so that the rooflines above are too slow and the shares too "
            "high by as much**; for a cold L2 many sets of operands took turns. The script now "
            "measures by a kernel and flushes, and that has not been run yet"
        )
    return text


def scan_kernels(content: Content) -> str:
    """The scan's kernel: the states in which it was timed, and shares of the roofline."""
    rows: list[list[object]] = [
        [
            shape_of(r),
            f"{r['bytes'] / 1e6:.2f}",
            f"{1e3 * r['default_ms']:.1f}",
            f"{1e3 * r['best_ms']:.1f}",
            f"{1e3 * r['cold_ms']:.1f}",
            microseconds(r, "kernel", "no_graph"),
            microseconds(r, "copy", "graph"),
            microseconds(r, "copy", "cold"),
            f"{1e3 * r['roofline_ms']:.1f}",
            percent(r["roofline_share"]),
            percent(r.get("cold_roofline_share", r["roofline_ms"] / r["cold_ms"])),
        ]
        for r in content["scan_fp16_n1"]
    ]
    headings = ["B x D x H x W", "MB", "default us", "best tactic us", "best, cold L2 us"]
    headings += ["no graph us", "copy us", "copy, cold us", "roofline us"]
    headings += ["share of roofline", "share, cold"]
    return f"{table(headings, rows)}\n\n{machine(content)}."


def scan_peers(content: Content) -> str:
    """The scan beside its peers, and why a peer was not timed."""
    names = ("mamba_ssm_core", "mamba_ssm", "triton_core", "triton")
    rows: list[list[object]] = []
    reasons: dict[str, str] = {}
    for r in content["scan_fp16_n1"]:
        wholes = [r["pytorch_ms"]]
        for name in ("mamba_ssm", "triton"):
            if name in r.get("times", {}):
                wholes.append(r["times"][name]["graph"]["median"])
            if reason := r.get("peers", {}).get(name, {}).get("not_timed"):
                reasons[name] = reason
        rows.append(
            [
                shape_of(r),
                f"{1e3 * r['best_ms']:.1f}",
                *(microseconds(r, name, "graph") for name in names),
                f"{1e3 * r['pytorch_ms']:.0f}",
                microseconds(r, "pytorch_fp32", "graph"),
                f"{min(wholes) / r['best_ms']:.1f}",
            ]
        )
    headings = ["B x D x H x W", "kernel us", "mamba-ssm, core alone us", "with copies us"]
    headings += ["Triton, core alone us", "with copies us", "PyTorch ops us", "in FP32 us"]
    headings += ["fastest whole peer / kernel"]
    notes = "".join(f" {name}: {reason}." for name, reason in sorted(reasons.items()))
    versions = sorted(
        f"{name} {peer['version']}"
        for name, peer in content["scan_fp16_n1"][0].get("peers", {}).items()
        if "version" in peer
    )
    return (
        f"{table(headings, rows)}\n\n{content['environment']['gpu']}, PyTorch "
        f"{content['environment']['torch']}{''.join(f', {v}' for v in versions)}; CUDA graphs, "
        f"medians.{notes}"
    )


def movers(content: Content) -> str:
    """Gather, scatter and merge against copies."""
    old = content.get("gather_fp16_16x192x56x56_to_48x48")
    if old is not None:
        return (
            "The gather of (16, 192, 56 x 56) to 48 x 48 lines in FP16 moves its kept bytes at "
            f"{old['share_of_copy_bandwidth']:.0%} of the same run's copy bandwidth (its operands "
            f"fit the L2 cache). Cold L2, other sizes, scatter and merge: {NOT_RUN}."
        )
    if "movers_fp16" not in content:
        return f"Gather, scatter and merge: {NOT_RUN}."
    rows: list[list[object]] = []
    for r in content["movers_fp16"]:
        if "not_timed" in r:
            rows.append([r["operator"], shape_of(r), *[NOT_RUN] * 8])
            continue
        rows.append(
            [
                r["operator"],
                f"{shape_of(r)} to {' x '.join(map(str, r['to']))}",
                f"{r['bytes'] / 1e6:.1f}",
                microseconds(r, "kernel", "graph"),
                percent(r["graph_share_of_same_copy"]),
                microseconds(r, "kernel", "cold"),
                percent(r["cold_share_of_same_copy"]),
                percent(r["cold_share_of_large_copy"]),
                microseconds(r, "kernel", "no_graph"),
                microseconds(r, "pytorch", "graph"),
            ]
        )
    headings = ["operator", "B x C x H x W", "MB", "warm us", "of a copy as large", "cold us"]
    headings += ["of a copy as large, cold", "of a large copy", "no graph us", "PyTorch ops us"]
    return f"{table(headings, rows)}\n\n{machine(content)}."


def gpu_model(content: Content) -> str:
    """VMamba-T on the GPU."""
    if "vmamba_tiny_s1l8_fp16_graph" not in content:
        return f"VMamba-T: {NOT_RUN}."
    rows: list[list[object]] = [
        [r["storm"], r["batch"], r["ms"], percent(r["scan_share_of_kernel_time"], 1)]
        for r in content["vmamba_tiny_s1l8_fp16_graph"]
    ]
    caption = f"{content['environment']['gpu']}, FP16, 224 x 224, one CUDA graph."
    return f"{table(['STORM', 'batch', 'ms', 'scan, of kernel time'], rows)}\n\n{caption}"


def checked(content: Content) -> str:
    """The comparison with FP64, of default tactics and of all of them."""
    if "check" not in content:
        return f"Comparison with FP64: {NOT_RUN}."
    c = content["check"]
    worst = c["worst_relative_l2"]
    text = (
        f"{c['checked']} of {c['combinations']} combinations compared with FP64, "
        f"{len(c['failures'])} failures; worst relative L2 {worst['torch.float32']:.1e} in FP32 "
        f"and {worst['torch.float16']:.1e} in FP16. "
    )
    if "tactics" not in content:
        return text + f"Every tactic: {NOT_RUN}."
    t = content["tactics"]
    worst = t["worst_relative_l2"]
    return text + (
        f"Every tactic of {len(t['shapes'])} shapes, N = 1 and 3, both types: {t['ran']} calls, "
        f"{len(t['failures'])} failures, {t['refused']} refused by tactics that cannot run the "
        f"shape; worst {worst['torch.float32']:.1e} in FP32 and {worst['torch.float16']:.1e} in "
        "FP16."
    )


def profile(content: Content | None) -> str:
    """The scan's kernel by the profiler's counters."""
    if content is None:
        return f"`python -m benchmarks.profile_scan`: {NOT_RUN}."

    def cell(kernel: Content, key: str, form: str, scale: float = 1.0) -> str:
        value = kernel.get(key)
        return UNTOLD if value is None else format(value * scale, form)

    rows: list[list[object]] = []
    for r in content["rows"]:
        for k in r["kernels"]:
            shared = [k.get(f"{kind}_shared_bytes") for kind in ("static", "dynamic")]
            conflicts = [k.get(f"shared_{kind}_conflicts") for kind in ("load", "store")]
            known = [c for c in conflicts if c is not None]
            rows.append(
                [
                    shape_of(r),
                    cell(k, "duration_ns", ".1f", 1e-3),
                    cell(k, "registers", ".0f"),
                    UNTOLD if None in shared else f"{sum(shared) / 1024:.1f}",
                    cell(k, "active_warps_pct", ".0f"),
                    cell(k, "issue_slots_busy_pct", ".0f"),
                    cell(k, "instructions_per_element", ".1f"),
                    cell(k, "xu_pipe_pct", ".0f"),
                    cell(k, "dram_pct", ".0f"),
                    cell(k, "l2_pct", ".0f"),
                    f"{sum(known):.0f}" if known else UNTOLD,
                    ", ".join(f"{name} {v:.1f}" for name, v in list(k["stalls"].items())[:3]),
                ]
            )
    headings = ["B x D x H x W", "us", "registers", "shared KiB", "active warps %"]
    headings += ["issue slots %", "instructions an element", "XU %", "DRAM %", "L2 %"]
    headings += ["bank conflicts", "stalls (warps an issue)"]
    return (
        f"{table(headings, rows)}\n\n{content['environment']['gpu']}, Nsight Compute, FP16, N = 1: "
        "caches emptied before each pass, clocks as they were. Instructions an element: warp "
        "instructions times 32, by B * 4 * D * H * W."
    )


def resources(content: Content | None) -> str:
    """What the compiler gave the kernels, by kernel and architecture."""
    if content is None:
        return f"`python -m benchmarks.plugin_resources`: {NOT_RUN}."
    rows: list[list[object]] = []
    groups: dict[tuple[str, str], list[Content]] = {}
    for arch, kernels in content["kernels"].items():
        for kernel in kernels:
            name = kernel["kernel"].partition("<")[0]
            groups.setdefault((name, arch), []).append(kernel)
    spilling_archs = set()
    for (name, arch), group in sorted(groups.items()):
        spills = [k["spill_store_bytes"] + k["spill_load_bytes"] for k in group]
        if any(spills):
            spilling_archs.add(arch)
        warps = sorted(k["resident_warps"] for k in group if "limit" in k)
        limits = ", ".join(sorted({k["limit"] for k in group if "limit" in k}))
        has = content["multiprocessors"][arch]["warps"]
        rows.append(
            [
                name,
                arch,
                len(group),
                span(sorted(k["registers"] for k in group)),
                f"{sum(map(bool, spills))} (at most {max(spills)} bytes)"
                if any(spills)
                else "none",
                max(k["static_shared_bytes"] for k in group),
                span(sorted(k["bound_threads"] for k in group)),
                f"{span(warps)} of {has} ({limits})" if warps else "below",
            ]
        )
    headings = ["kernel", "GPU", "variants", "registers", "spill", "static shared bytes"]
    headings += ["largest block", "resident warps (limited by)"]
    clean = [arch for arch in content["kernels"] if arch not in spilling_archs]
    verdict = f" No kernel spills on {' and '.join(clean)}." if clean else ""
    return (
        f"{table(headings, rows)}\n\nnvcc {content['environment']['nvcc']}, sources "
        f"`{content['environment']['sources'][:12]}`.{verdict} Resident warps are computed."
    )


DEFAULT_SHARED_BYTES = 48 * 1024
"""Of a block, on every GPU, without asking for more."""


def launches(content: Content | None) -> str:
    """What VMamba-T's scans launch by default on each device, and what of it is resident."""
    if content is None:
        return f"`python -m benchmarks.plugin_resources`: {NOT_RUN}."
    devices = content["devices"]
    rows: dict[tuple[str, str], list[object]] = {}
    over: dict[str, list[str]] = {}
    for name, device in devices.items():
        has = content["multiprocessors"][device["arch"]]["warps"]
        for r in device["launches"]:
            dtype = r["dtype"].replace("float", "FP")
            row = rows.setdefault((dtype, shape_of(r)), [dtype, shape_of(r)])
            kernel = r["kernel"].partition("Scan<")[0]
            shared = r["static_shared_bytes"] + r["dynamic_shared_bytes"]
            row += [
                f"{kernel}, {r['blocks']} x {r['threads']}",
                f"{shared / 1024:.1f}",
                f"{r['resident_warps']} of {has} ({r['limit']})",
            ]
            if shared > DEFAULT_SHARED_BYTES:
                over.setdefault(name, []).append(f"{dtype} {shape_of(r)}")
    headings = ["type", "B x D x H x W"]
    for name, device in devices.items():
        headings += [f"{name} ({device['arch']}): blocks x threads", "shared KiB", "resident warps"]
    largest = " ".join(
        f"Over 48 KiB on {name}: {', '.join(over[name])}."
        if name in over
        else f"None is over 48 KiB on {name}."
        for name in devices
    )
    facts = "; ".join(
        f"{name}: {d['facts']['multiprocessors']} multiprocessors, blocks of up to "
        f"{d['facts']['shared_bytes'] / 1024:.0f} KiB"
        for name, d in devices.items()
    )
    return (
        f"{table(headings, rows.values())}\n\nN = 1, default tactic. Shared memory is static and "
        f"dynamic, of a block. {largest} Resident warps are those of a multiprocessor with as many "
        "of the launch's blocks as fit, computed from the variant's registers and these figures "
        f"({facts}); a launch of fewer blocks leaves multiprocessors with less."
    )


def span(values: list[int]) -> str:
    """Smallest to largest of ordered values."""
    if not values:
        return "-"
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


DEVELOPMENT_READING = 47.0
"""Instructions of a scan element read by hand during development, of an earlier kernel."""


def instructions_of(profiled: Content | None) -> tuple[dict[tuple[int, ...], float], str]:
    """Instructions of a scan element by (D, H, W), and where they come from."""
    if profiled is None:
        return {}, f"{DEVELOPMENT_READING:.0f}, read by hand on an H100 from an earlier kernel"
    found = {
        tuple(r["shape"][1:]): sum(k["instructions_per_element"] for k in r["kernels"])
        for r in profiled["rows"]
        if r["shape"][0] > 1 and all(k["instructions_per_element"] for k in r["kernels"])
    }
    return found, f"as counted on {profiled['environment']['gpu']} at batch 16"


def board_estimates(profiled: Content | None) -> str:
    """Lower bounds of VMamba-T's scans on a T4 and an Orin. Estimates."""
    counted, origin = instructions_of(profiled)
    rows: list[list[object]] = []
    for batch in estimates.BATCHES:
        for channels, height, width in estimates.STAGES:
            instructions = counted.get((channels, height, width), DEVELOPMENT_READING)
            cells: list[object] = [f"{batch} x {channels} x {height} x {width}"]
            for target in estimates.CLOCKS_GHZ:
                b = estimates.bounds(target, batch, channels, height * width, instructions)
                cells.append(f"{b.memory:.1f} / {b.special:.1f} / {b.issue:.1f}")
                cells.append(b.largest)
            rows.append(cells)
    headings = ["B x D x H x W", "T4 us: memory / special / issue", "binds"]
    headings += ["AGX Orin 64 GB us", "binds"]
    return (
        f"{table(headings, rows)}\n\n**Estimates; nothing was measured on these boards.** Lower "
        "bounds of one scan in FP16 with N = 1: operands once at the nominal bandwidth; three "
        "special functions an element; instructions at one a cycle and scheduler "
        f"({origin}), at the highest clock."
    )
