# SPDX-License-Identifier: Apache-2.0
"""The table of accuracies: its rows, evaluation, the script in miniature, and its rendering."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from benchmarks import render_storm, storm_accuracy
from benchmarks.operator_bench.plots import digest
from benchmarks.storm_eval import latency, plots, tables
from benchmarks.storm_eval.cases import FIRSTS, KEEPS, STEPS, TARGETS, WHERES, Case, cases
from benchmarks.storm_eval.data import TestSet, load_test_set
from benchmarks.storm_eval.evaluate import Evaluator, batch_size
from benchmarks.training.data import normalise
from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.measured import read_measured
from stormrt.storm.plan import StormPlan, check_plan
from stormrt.storm.planner import plan_for_flops
from stormrt.storm.variants import VARIANTS
from stormrt.storm.vmamba import VMamba
from tests.helpers.models import SMALL, lively, random_images
from tests.helpers.seeds import generator

ROOT = Path(__file__).resolve().parents[2]
NANO = [VARIANTS["vmamba_nano_scenes"], VARIANTS["vmamba_nano_cifar10"]]
TINY = dataclasses.replace(SMALL, name="tiny", image=64, num_classes=5)
CIFAR = VARIANTS["vmamba_nano_cifar10"]


# --- rows ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NANO, ids=lambda v: v.name)
def nano(request):
    return request.param, cases(request.param)


def test_the_table_is_complete(nano):
    _, rows = nano
    names = {row.key for row in rows}
    assert len(names) == len(rows)
    methods = {row.method for row in rows if row.where == "s0b1"}
    assert len(methods) > 25
    for where, keep in itertools.product(WHERES, KEEPS):
        label = f"s{where[0]}b{where[1]}"
        for method in methods:
            if not method.startswith("smaller input"):
                assert (method, label, keep) in names
    for share in TARGETS:
        assert ("planner", f"flops={share:g}", share) in names
        assert ("smaller input:bicubic", f"flops={share:g}", share) in names
    searched = [row.method for row in rows if row.search]
    assert all(any(f"s{s}b{b}" in m for m in searched) for s, b in FIRSTS)
    assert all(any(f"steps={n}" in m for m in searched) for n in STEPS)
    assert sum(row.headline for row in rows) < len(rows) / 4


def test_plans_fit_and_rows_know_what_they_cost(nano):
    variant, rows = nano
    side = variant.image
    for row in rows:
        if row.plan is not None:
            check_plan(row.plan, variant, side, side)
            assert row.flops == count_flops(variant, side, side, row.plan).total
        budget = row.where.startswith("flops=")
        if budget and row.method != "scan only" and "restored" not in row.method:
            assert row.flops <= row.keep * rows[0].flops, row.key
    assert rows[0].method == "dense"


def test_a_smaller_input_costs_no_more_than_the_row_beside_it(nano):
    variant, rows = nano
    by_name = {row.key: row for row in rows}
    for row in rows:
        beside = by_name.get(("stride", row.where, row.keep))
        if row.method.startswith("smaller input") and beside is not None:
            assert row.flops <= beside.flops
            assert row.size is not None
            larger = row.size[0] + 1
            if larger <= variant.image:
                assert count_flops(variant, larger, larger).total > beside.flops


def test_rows_of_equal_work_are_of_equal_cost(nano):
    _, rows = nano
    by_work = itertools.groupby(sorted(rows, key=lambda r: str(r.work)), key=lambda r: str(r.work))
    groups = [list(group) for _, group in by_work]
    assert len(groups) < len(rows)
    assert all(len({row.flops for row in group}) == 1 for group in groups)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.fixture
def small_set(rng: np.random.Generator) -> TestSet:
    images = random_images(rng, 7, TINY.image, TINY.image)
    return TestSet(images, torch.from_numpy(rng.integers(0, 5, 7)), 5)


def test_top1_with_shared_prefixes_is_that_of_whole_passes(small_set, seed):
    model = lively(TINY, seed)
    rows = [row for row in cases(TINY) if not row.search and row.keep in (None, 0.5)]
    rows.sort(key=lambda row: row.place or (-1, 0))
    found = dict(zip([r.key for r in rows], Evaluator(model, small_set, 3)(rows), strict=True))
    assert len({r.method for r in rows}) > 25
    for row in rows:
        with torch.no_grad():
            chosen = row.build(model)(small_set.images).argmax(1)
        right = int((chosen == small_set.labels).sum()) / 7
        assert found[row.key] == (row, pytest.approx(right)), row.key


def test_equal_work_is_done_once(small_set, seed):
    calls = []

    def build(model: VMamba):
        calls.append(1)
        return model

    rows = [Case("x", where, keep, 1, build, StormPlan()) for where in "ab" for keep in (0.5, 0.9)]
    assert len({top1 for _, top1 in Evaluator(lively(TINY, seed), small_set, 4)(rows)}) == 1
    assert len(calls) == 1


def test_batches_are_large_where_maps_are_small():
    sizes = [batch_size(VMamba(variant, 2)) for variant in NANO]
    assert sizes == [625, 2500]


# --- data ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty encoded images of 32 x 32 in ten classes."""
    rng = generator("npz")
    encoded = []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
        encoded.append(file.getvalue())
    arrays = {"classes": np.array([f"class {i}" for i in range(10)])}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, encoded)])
        arrays[f"{split}_labels"] = np.arange(20) % 10
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays)
    return path


def test_images_are_decoded_and_normalised_as_for_training(npz):
    data = load_test_set(npz, 32, torch.device("cpu"), torch.float32)
    assert data.images.shape == (20, 3, 32, 32)
    assert data.labels.tolist() == [i % 10 for i in range(20)]
    arrays = np.load(npz)
    first = arrays["test_images"][: arrays["test_offsets"][1]].tobytes()
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(first)))).permute(2, 0, 1)[None]
    assert torch.equal(data.images[:1], normalise(pixels / 255.0))
    few = load_test_set(npz, 32, torch.device("cpu"), torch.float32, limit=4)
    assert few.labels.tolist() == [0, 5, 0, 5]
    with pytest.raises(InputError, match="32x32 pixels"):
        load_test_set(npz, 128, torch.device("cpu"), torch.float32)


# --- the script ----------------------------------------------------------------------------------


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.storm_accuracy", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


PATTERN = r"dense|(lines:dissimilarity:merge|tokens:step_size|smaller.*) (s0b1|flops)|planner flops"


def command(npz: Path, out: Path) -> tuple[object, ...]:
    """A few rows of untrained weights of two seeds."""
    return (
        "--run", CIFAR.name, npz, "random:0", "random:1", "--limit", 4, "--device", "cpu",
        "--only", PATTERN, "--out", out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(npz, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "results.json"
    done = run_script(*command(npz, out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def results(made, tmp_path):
    """What the script wrote, as a file of its own."""
    out = tmp_path / "results.json"
    out.write_text(made[0].read_text())
    return out


def test_the_script_writes_rows_and_says_what_was_not_run(made):
    out, said = made
    assert "latency: not run, it needs a CUDA GPU and STORMRT_PLUGIN_LIB" in said
    rows = json.loads(out.read_text())["accuracy"]
    assert {row["checkpoint"] for row in rows} == {"random:0", "random:1"}
    assert sum(r["checkpoint"] == "random:0" for r in rows) > len(rows) / 2
    assert all(0 <= row["top1"] <= 1 and row["images"] == 4 for row in rows)


@pytest.mark.slow
def test_the_script_goes_on_where_it_was_cut_off(results, npz):
    content = json.loads(results.read_text())
    rows = content["accuracy"]
    assert " 0 of 0 rows" in run_script(*command(npz, results)).stdout
    assert json.loads(results.read_text()) == content
    results.write_text(json.dumps({**content, "accuracy": rows[:-3]}))
    assert run_script(*command(npz, results)).returncode == 0
    resumed = json.loads(results.read_text())["accuracy"]
    assert sorted(map(str, resumed)) == sorted(map(str, rows))
    # A row of a plan that is no longer the one of its name is made again, in its place.
    stale = [{**row, "plan": "another"} if row["method"] == "planner" else row for row in rows]
    results.write_text(json.dumps({**content, "accuracy": stale}))
    assert run_script(*command(npz, results)).returncode == 0
    renewed = json.loads(results.read_text())["accuracy"]
    assert sorted(map(str, renewed)) == sorted(map(str, rows))
    # Another machine's rows are dropped.
    results.write_text(json.dumps({**content, "environment": {"device": "Other"}}))
    said = run_script(*command(npz, results), "--seconds", 0).stdout
    assert "its rows are dropped" in said
    assert json.loads(results.read_text())["accuracy"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", CIFAR.name), "MODEL DATA CHECKPOINT"),
        (("--run", "vmamba_mano", "x", "y"), "did you mean"),
        (("--run", CIFAR.name, "absent.npz", "random:0"), "the data do not exist"),
    ],
)
def test_bad_requests_are_refused_in_one_message(arguments, message, tmp_path):
    done = run_script(*arguments, "--out", tmp_path / "x.json", "--device", "cpu")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- tables and plots ----------------------------------------------------------------------------


def timed_rows(content):
    """Times for a content's rows, as a GPU's would be written."""
    found = {"latency": [], "latency_baselines": []}
    for row, batch in itertools.product(content["accuracy"], (1, 64)):
        name = "latency" if row["plan"] else "latency_baselines"
        timed = {key: row[key] for key in ("model", "method", "where", "keep", "flops_share")}
        timed |= {
            "size": [32, 32],
            "batch": batch,
            "ms": batch * row["flops_share"],
            "dense_ms": 1.0,
        }
        found[name].append(timed)
    return {**content, **found}


def test_tables_show_what_was_run_and_say_what_was_not(results):
    content = json.loads(results.read_text())
    assert "4 test images" in tables.machine(content)
    headline = tables.headline(content)
    assert "| vmamba_nano_cifar10 at 75% | the planner's choice | 72.7% |" in headline
    assert "best simple: smaller input" in headline
    for row in content["accuracy"]:
        if row["method"] == "planner":
            row["plan"] = "stage 0 block 1: 12x12 lines by random"
    earlier = "the planner's choice with an earlier default: stage 0 block 1: 12x12 lines by random"
    assert earlier in tables.headline(content)
    assert " to " in headline  # the range over two checkpoints
    large = tables.large(content)
    assert "| s0b1 to 14x14 | 0.75 |" in large or "not run" in large
    assert "lines:dissimilarity:merge" in tables.collapse(content)
    for block in (tables.search, tables.latencies, tables.speed):
        assert "not run" in block(content)
    for _, block in render_storm.BLOCKS:
        assert "not run" in block(None)
    assert "| 64%" in tables.latencies(timed_rows(content)).replace("65%", "64%")


def test_the_speed_of_vmamba_t_stands_beside_its_flops():
    rows = [
        {"model": "vmamba_tiny_s1l8", "size": [224, 224], "batch": 1, "method": method,
         "where": where, "keep": None, "flops_share": share, "ms": ms, "kernels": 9,
         "kernel_ms": ms * 0.9, "ms_by_kind": {"scan": 0.1}}
        for method, where, share, ms in (
            ("dense", "dense", 1.0, 2.0), ("keep", "keep=0.5", 0.5, 1.5),
        )
    ]  # fmt: skip
    text = tables.speed({"latency": rows})
    assert "| 224 | 1 | keep=0.5 | 50% | 1.500 | 75% | 9 | 1.350 | 0.100 |" in text


def test_plots_are_the_same_each_time_and_show_what_was_run(results, tmp_path):
    content = timed_rows(json.loads(results.read_text()))
    for number, (_, draw) in enumerate(plots.PLOTS):
        drawn = []
        for name in ("a.svg", "b.svg"):
            path = tmp_path / f"{number}{name}"
            draw(content, path, digest(b"results"))
            drawn.append(path.read_text())
        assert drawn[0] == drawn[1]
        assert digest(b"results") in drawn[0]
        for text in ("STORM: lines, merged", "planner", "smaller input", CIFAR.name):
            assert text in drawn[0]
        assert "ToMe" not in drawn[0]


def test_the_document_is_that_of_the_committed_results():
    command = [sys.executable, ROOT / "benchmarks" / "render_storm.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rendering_finds_what_is_out_of_date(results, tmp_path, monkeypatch):
    document = tmp_path / "docs" / "storm_results.md"
    document.parent.mkdir()
    document.write_text(render_storm.DOCUMENT.read_text())
    monkeypatch.setattr(render_storm, "ROOT", tmp_path)
    monkeypatch.setattr(render_storm, "DOCUMENT", document)
    monkeypatch.setattr(render_storm, "RESULTS", results)
    assert len(render_storm.stale_blocks(write=True)) > 3
    assert len(render_storm.stale_plots(write=True)) == 2
    assert not render_storm.stale_blocks(write=False)
    assert not render_storm.stale_plots(write=False)
    content = json.loads(results.read_text())
    content["accuracy"][0]["top1"] = 0.123
    results.write_text(json.dumps(content))
    assert render_storm.stale_blocks(write=False)
    assert len(render_storm.stale_plots(write=False)) == 2


# --- latency -------------------------------------------------------------------------------------


def test_times_are_a_file_that_the_planner_reads(tmp_path):
    rows = []
    for share, ms in ((1.0, 4.0), (0.75, 3.0), (0.5, 2.0)):
        plan = plan_for_flops(CIFAR, 32, 32, share, steps=2).plan
        case = Case("planner", f"flops={share}", share, 1, lambda m: m, plan)
        rows.append({**storm_accuracy._timed_row(CIFAR, 32, 64, case), "ms": ms})
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"latency": rows}))
    measured = read_measured(path, CIFAR, 32, 32, 64)
    assert [m.ms for m in measured] == [4.0, 3.0, 2.0]
    assert measured[0].plan == StormPlan()


def test_only_rows_of_their_own_are_timed(nano):
    _, rows = nano
    timed = [r for r in rows if storm_accuracy.TIMED.fullmatch(f"{r.method} {r.where}")]
    assert 100 < len(timed) < 250
    assert not any(row.search for row in timed)
    assert {"dense", "planner", "scan only", "matching"} <= {row.method for row in timed}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("stormrt::selective_scan_2d::stagedScan<...>", "scan"),
        ("void stormrt::lineCopy<true>(...)", "STORM's lines"),
        ("stormrt::spatialUnitMerge", "STORM's lines"),
        ("void at::native::vectorized_layer_norm_kernel<c10::Half, float>", "normalisation"),
        ("conv_depthwise2d_forward_kernel", "depthwise convolution"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16", "products and convolutions"),
        ("cudnn::ops::nchwToNhwcKernel", "memory layout"),
        (
            "void at::native::vectorized_elementwise_kernel<8, GeluCUDAKernel",
            "elementwise and sums",
        ),
        ("something new", "other"),
    ],
)
def test_kernels_are_told_by_their_names(kernel, kind):
    assert latency.kind_of(kernel) == kind
