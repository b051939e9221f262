# SPDX-License-Identifier: Apache-2.0
"""What of the benchmarks runs without a GPU: peers' layouts, and readers of tools' output."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks.operator_bench import estimates, gather, peers, report
from benchmarks.operator_bench.ncu_csv import digest, parse
from benchmarks.operator_bench.operands import scan_inputs, total_bytes
from benchmarks.operator_bench.ptxas import (
    Resources,
    parse_bounds,
    parse_ptxas,
    resident,
    short_name,
)
from benchmarks.profile_scan import parse_shape
from stormrt.plugins.selective_scan_2d.reference import reference

# Written by hand after ncu's raw page: names, units, values with commas between thousands.
NCU = """==PROF== Connected to process 7 (/usr/bin/python3)
something that the program printed
==PROF== Profiling "stagedScan" - 0: 0%....50%....100% - 39 passes
"ID","Kernel Name","launch__registers_per_thread","smsp__inst_executed.sum",\
"gpu__time_duration.sum","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active"
"","","register/thread","inst","ns","inst","inst","%"
"0","void stormrt::selective_scan_2d::<unnamed>::stagedScan<A, (int)2>(Params)","96","1,204,224",\
"50,624","1.25","4.5","31.5"
"1","void other(int)","40","10","1,000","0","n/a",""
==PROF== Disconnected from process 7
"""

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fv' for 'sm_75'
ptxas info    : Function properties for _Z1fv
    24 bytes stack frame, 28 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem
ptxas info    : Function properties for _Z6helperv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Compiling entry function '_Z1gv' for 'sm_75'
ptxas info    : Function properties for _Z1gv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 352 bytes cmem[0]
"""
PTX = """.visible .entry _Z1fv(
    .param .u64 _Z1fv_param_0
)
.maxntid 448, 1, 1
.minnctapersm 2
{
}
.visible .entry _Z1gv()
{
}
"""


def naive_scan(operands):
    """Sequential, in FP64: the peers' core as a loop."""
    xs, dts, bs, cs, a, d, bias = (t.double() for t in operands)
    _, rows, length = xs.shape
    delta = torch.nn.functional.softplus(dts + bias[:, None])
    b, c = (t.repeat_interleave(rows // 4, 1) for t in (bs[:, :, 0], cs[:, :, 0]))
    state, ys = torch.zeros_like(xs[:, :, 0]), torch.empty_like(xs)
    for t in range(length):
        drive = delta[:, :, t] * b[:, :, t] * xs[:, :, t]
        state = torch.exp(delta[:, :, t] * a[:, 0]) * state + drive
        ys[:, :, t] = c[:, :, t] * state + d * xs[:, :, t]
    return ys


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 6, 6), (1, 2, 1, 4)])
def test_the_peers_get_the_operands_of_the_contract_in_visiting_order(shape):
    seed = torch.seed() % 2**31
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = scan_inputs(*shape, 1, "mid", torch.float32, generator)
    batch, channels, height, width = shape
    ys = naive_scan(peers.naive_operands(tensors)).view(batch, 4, channels, height * width)
    y = torch.empty(shape, dtype=torch.float64)
    peers.cross_merge(ys, y)
    torch.testing.assert_close(y, reference(*tensors), rtol=1e-5, atol=1e-5)


def test_lines_that_a_gather_keeps_are_found_again():
    generator = torch.Generator().manual_seed(1)
    lines = gather.kept_lines(3, 10, 4, generator)
    assert (lines.diff(dim=1) > 0).all()
    places = gather.came_from(lines, 10)
    assert torch.equal(places.gather(1, lines.long()), torch.arange(4).int().expand(3, 4))


def test_sectors_are_those_that_hold_a_kept_value():
    rows, columns = torch.tensor([[0, 1]]).int(), torch.tensor([[0, 1, 20]]).int()
    # FP16, 32 columns: a row is two sectors, and both are touched in two of four rows.
    assert gather.sectors_read((rows, columns), (1, 1, 4, 32), 2) == 4 * 32
    assert gather.sectors_read((rows, columns), (1, 2, 4, 32), 2) == 8 * 32


def test_the_profilers_table_is_read():
    kernels = parse(NCU)
    assert [k.name.count("stagedScan") for k in kernels] == [1, 0]
    kept = digest(kernels[0], scan_elements=1204224)
    assert kept["registers"] == 96
    assert kept["duration_ns"] == 50624
    assert kept["instructions_per_element"] == 32
    assert kept["xu_pipe_pct"] == 31.5
    assert list(kept["stalls"].items()) == [("long_scoreboard", 4.5), ("barrier", 1.25)]
    assert kept["dram_pct"] is None  # the profiler did not tell
    assert digest(kernels[1], 320)["stalls"] == {"barrier": 0}


def test_an_output_without_a_table_is_refused_with_its_end():
    with pytest.raises(ValueError, match="ERR_NVGPUCTRPERM"):
        parse("==PROF== x\n==ERROR== ERR_NVGPUCTRPERM - no permission\n")


def test_shapes_are_read_with_their_tactic():
    assert parse_shape("16x96x56x56") == (16, 96, 56, 56, 0)
    assert parse_shape("1x2x3x4@33") == (1, 2, 3, 4, 33)
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        parse_shape("1x2x3")


def test_the_compilers_report_is_read_for_each_kernel():
    assert parse_ptxas(PTXAS) == [
        # A spill of a function that a kernel calls is the kernel's.
        Resources("_Z1fv", 64, 512, 32, 32, 32),
        Resources("_Z1gv", 12, 0, 0, 0, 0),
    ]
    assert parse_bounds(PTX) == {"_Z1fv": (448, 2), "_Z1gv": (0, 0)}


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    [
        (75, 128, 512, 512, (1, 16, "registers")),
        (75, 72, 448, 224, (2, 28, "warps")),
        (90, 32, 1024, 0, (2, 64, "warps")),
        (87, 32, 32, 0, (16, 16, "blocks")),
        # 48 KiB and the system's own 1 KiB: three in 164 KiB.
        (87, 32, 128, 48 * 1024, (3, 12, "shared memory")),
    ],
)
def test_what_fits_a_multiprocessor_is_the_least_of_its_limits(
    arch, registers, threads, shared, expected
):
    assert resident(arch, registers, threads, shared) == expected


def test_names_of_kernels_are_cut_down_to_what_tells_them_apart():
    name = "void a::(anonymous namespace)::f<a::Cut<__half, (int)4, (bool)1> >(a::P const&)"
    assert short_name(name) == "f<Cut<__half, 4, 1>>"


def test_estimated_bytes_are_those_of_the_contracts_operands():
    generator = torch.Generator().manual_seed(1)
    tensors = scan_inputs(2, 3, 5, 7, 1, "mid", torch.float16, generator)
    bytes_of_y = total_bytes([tensors[0]])
    assert estimates.scan_bytes(2, 3, 35) == total_bytes(tensors) + bytes_of_y


def test_a_bound_is_work_by_the_boards_rate():
    bound = estimates.bounds("t4", 1, 96, 3136, 47.0)
    assert bound.memory == pytest.approx(3.67e6 / 320e3, rel=0.01)
    assert bound.special == pytest.approx(4 * 96 * 3136 * 3 / 16 / 40 / 1590, rel=1e-6)
    assert bound.largest == "memory"


def test_results_are_written_with_a_line_for_each_row(tmp_path):
    content = {"a": [{"shape": [1, 2], "text": "x [y] {z}"}, {"b": None}], "c": {"d": 1.5}}
    report.write(tmp_path / "new" / "r.json", content)
    text = (tmp_path / "new" / "r.json").read_text()
    assert json.loads(text) == content
    assert '  "c": { "d": 1.5 }' in text.splitlines()
