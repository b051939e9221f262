# SPDX-License-Identifier: Apache-2.0
"""What fuzzing and rough handling have found, each once more by itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.photographs import (
    UnreadableImageError,
    image_size,
    preprocess,
    preprocess_labelled,
)
from stormrt.pipeline.schema import FolderFile
from stormrt.pipeline.stage_cache import StageCache
from stormrt.reading import parse_json, read_small
from stormrt.storm.checkpoint import read_state_dict
from stormrt.storm.plan import Reduction, StormPlan, check_plan, parse_plan
from stormrt.storm.variants import get_variant
from tests.hardening.corpus import png
from tests.hardening.mutations import zip_bomb
from tests.pipeline.support import ROOT, environment

TINY = get_variant("vmamba_tiny_s1l8")
CLI = [sys.executable, "-c", "from stormrt.pipeline.cli.main import main; main()"]


class TestText:
    def test_a_device_without_an_end_is_not_read_to_it(self):
        with pytest.raises(OSError, match="larger than 1 MiB"):
            read_small(ROOT.__class__("/dev/zero"), 1 << 20)

    def test_deep_nesting_is_a_value_error(self):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(b"[" * 100_000)
        assert parse_json(b'{"a": [1]}') == {"a": [1]}

    def test_a_plan_of_a_million_reductions_is_refused_at_once(self):
        plan = StormPlan((Reduction(2, 3, 5, 5), Reduction(1, 1, 10**400, 9)) * 500_000)
        start = time.perf_counter()
        with pytest.raises(InputError, match="before the same block"):
            check_plan(plan, TINY, 224, 224)
        assert time.perf_counter() - start < 20

    def test_a_map_of_any_height_is_refused_by_its_size(self, tmp_path):
        place = {"stage": 0, "block": 1, "height": 10**400, "width": 3, "host": "uniform"}
        plan = {"reductions": [place, {**place, "stage": 2, "height": 2, "width": 2}]}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(InputError, match="cannot keep"):
            parse_plan(str(tmp_path / "plan.json"), TINY, 224, 224)

    def test_a_measured_time_of_infinite_size_is_refused(self, tmp_path):
        row = '{"model": "x", "size": [Infinity, 1], "batch": 1, "ms": 1, "plan": "keep=1"}'
        (tmp_path / "t.json").write_text(f'{{"latency": [{row}]}}')
        with pytest.raises(InputError, match="measured times could not be read"):
            parse_plan(f"latency<=1,file={tmp_path / 't.json'}", TINY, 224, 224)

    def test_a_stage_record_that_is_nested_is_no_record(self, tmp_path):
        (tmp_path / "export.json").write_text("[" * 100_000)
        assert StageCache(tmp_path).load("export", int, "key") is None

    @pytest.mark.parametrize(
        "name", ["../x", "/etc/passwd", "a/../../b", "", ".", "a\0b", "x" * 300, "a\nb"]
    )
    def test_a_manifest_names_no_file_outside_its_folder(self, name):
        with pytest.raises(ValidationError, match="is no name of a file in the folder"):
            TypeAdapter(FolderFile).validate_python(FileDigest(name, "0" * 64, 1))
        good = FileDigest("plugins/a b.so", "0" * 64, 1)
        assert TypeAdapter(FolderFile).validate_python(good) == good


class TestCheckpoints:
    @pytest.fixture
    def state(self):
        return {"a": torch.arange(6.0).reshape(2, 3)}

    @pytest.mark.parametrize("zipped", [True, False])
    def test_what_only_reserves_memory_is_refused(self, tmp_path, zipped):
        path = tmp_path / "w.pth"
        value = {"a": torch.zeros(1), "b": bytearray(9)}
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="objects that are no weights"):
            read_state_dict(path)

    def test_a_packed_archive_is_refused_before_it_is_unpacked(self, tmp_path):
        (tmp_path / "w.pth").write_bytes(zip_bomb("w/data/0", b"", 1 << 28, {}))
        with pytest.raises(InputError, match="packed, and larger than the file"):
            read_state_dict(tmp_path / "w.pth")

    def test_an_older_file_that_claims_more_than_it_has_is_refused(self, tmp_path, state):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=False)
        whole = file.getvalue()
        (tmp_path / "w.pth").write_bytes(whole)
        assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], state["a"])
        # The storage's length, BININT1 6, becomes BININT 2^31 - 1.
        lying, changes = re.subn(rb"(?<=cpuq.)K\x06", b"J\xff\xff\xff\x7f", whole)
        assert changes == 1
        (tmp_path / "w.pth").write_bytes(lying)
        with pytest.raises(InputError, match="larger than the file"):
            read_state_dict(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda t: t * 1j, "complex"),
            (lambda t: t.to_sparse(), "sparse"),
            (lambda t: t.to("meta"), "missing"),
        ],
    )
    def test_tensors_that_are_no_weights_are_named(self, tmp_path, state, change, word):
        torch.save({"a": change(state["a"])}, tmp_path / "w.pth")
        with pytest.raises(InputError, match=f"a: .*{word}"):
            read_state_dict(tmp_path / "w.pth")


class TestImages:
    def save(self, path, array):
        Image.fromarray(array).save(path)
        return path

    @pytest.mark.parametrize("kind", ["png", "tiff"])
    def test_sixteen_bits_are_scaled_and_not_clipped(self, tmp_path, rng, kind):
        eight = rng.integers(0, 256, (40, 40)).astype(np.uint8)
        wide = self.save(tmp_path / f"wide.{kind}", eight.astype(np.uint16) * 257)
        same = self.save(tmp_path / "same.png", eight)
        assert np.array_equal(preprocess(wide, 32, 32), preprocess(same, 32, 32))

    def test_pixels_of_no_known_range_are_refused(self, tmp_path, rng):
        path = self.save(tmp_path / "f.tiff", rng.random((40, 40), np.float32))
        with pytest.raises(UnreadableImageError, match="no range is known"):
            preprocess(path, 32, 32)

    def test_too_many_pixels_are_refused_by_the_header(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(13_000, 13_000, bits=1))
        with pytest.raises(UnreadableImageError, match="more than 100 million"):
            image_size(tmp_path / "a.png", "it")

    def test_what_cannot_be_enlarged_is_refused(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(100_000, 1))
        with pytest.raises(UnreadableImageError, match="too long and thin"):
            preprocess(tmp_path / "a.png", 224, 224)
        with pytest.raises(InputError, match="never enlarged"):
            preprocess_labelled(tmp_path / "a.png", "it", 224, 224)

    def test_a_chunk_that_claims_gigabytes_takes_none(self, tmp_path):
        whole = bytearray(png(40, 40))
        at = whole.index(b"IDAT")
        whole[at - 4 : at] = b"\x7f\xff\xff\xff"
        (tmp_path / "a.png").write_bytes(bytes(whole))
        tracemalloc.start()
        with contextlib.suppress(UnreadableImageError):
            preprocess(tmp_path / "a.png", 32, 32)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100 << 20

    @pytest.mark.parametrize("kind", ["GIF", "PPM", "EPS"])
    def test_other_formats_are_refused_whatever_their_name(self, tmp_path, kind):
        Image.new("RGB", (50, 50)).save(tmp_path / "a.jpg", kind)
        with pytest.raises(UnreadableImageError, match="cannot identify"):
            image_size(tmp_path / "a.jpg", "it")

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    @pytest.mark.parametrize("size", [(1, 1), (3, 50), (60, 45)])
    def test_every_mode_and_size_of_photograph_is_read(self, tmp_path, mode, size):
        path = tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}"
        Image.new(mode, size).save(path)
        assert preprocess(path, 32, 48).shape == (3, 32, 48)


class TestCommandLine:
    def run(self, *arguments, **options):
        return subprocess.run(
            [*CLI, *arguments],
            env=environment(),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def test_a_full_standard_output_is_an_error_and_no_traceback(self):
        with open("/dev/full", "w") as full:
            done = self.run("targets", "list", "--json", stdout=full)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_reader_that_goes_is_no_verdict(self):
        ours, theirs = os.pipe()
        os.close(ours)
        with os.fdopen(theirs, "w") as gone:
            done = self.run("targets", "list", "--json", stdout=gone)
        assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.parametrize(
        ("number", "code", "word"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    )
    def test_a_signal_is_told_with_its_exit_code(self, tmp_path, number, code, word):
        pipe = tmp_path / "plan.json"
        os.mkfifo(pipe)  # the command waits for what is never written
        process = subprocess.Popen(
            [*CLI, "build", "--model", "vmamba_tiny_s1l8", "--target", "t4", "--storm", str(pipe)],
            env=environment(),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        with pipe.open("w"):  # returns when the command has opened it
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code
        assert said.strip() == f"{word}; nothing that was built before is lost"
