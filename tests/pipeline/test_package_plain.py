# SPDX-License-Identifier: Apache-2.0
"""The C++ program: against TensorRT's real headers and lean library, and against a stand-in.

No GPU is needed. With the real headers it is compiled by its own CMake file, linked and started.
What it does with an engine's answers is tested with stand-ins for TensorRT and CUDA, whose "engine"
answers with the logits of the golden photograph that it is given.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stormrt.pipeline.package.assemble import package_bundle
from stormrt.pipeline.photographs import packaged_photographs, preprocess
from tests.helpers.native import lean_library, require_toolchain
from tests.pipeline.package_bundles import (
    CLASSES,
    HEIGHT,
    WIDTH,
    golden,
    make_bundle,
    make_library,
)

STAND_INS = Path(__file__).parent / "package_stand_ins"
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1"]


def packaged(folder: Path, library: bool = False, **wanted: object) -> Path:
    bundle = make_bundle(folder / "bundle", **wanted)
    if library:
        make_library(bundle)
    return package_bundle(bundle, "plain", folder / "package").folder


def compiled(sources: Path, out: Path, *, include: Path | None = None) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    includes = ["-I", str(sources), *(["-isystem", str(include)] if include else [])]
    source = next(iter(sources.glob("*.cpp")))
    command = [compiler, *STRICT, *includes, str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Program:
    """The program beside a package's files, with stand-ins for TensorRT and CUDA."""

    def __init__(self, package: Path, program: Path) -> None:
        self.package, self.program = package, program

    def __call__(self, *arguments: object, does: str = "right", **env: str):
        (self.package / "engine.plan").write_text(does)
        return subprocess.run(
            [self.program, *map(str, arguments)],
            cwd=self.package,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    folder = tmp_path_factory.mktemp("program")
    package = packaged(folder, engine="tensorrt", plugins=True, library=True, batch=2)
    return Program(package, compiled(package, folder / "classify", include=STAND_INS))


def ppm(path: Path, out: Path) -> Path:
    with Image.open(path) as image:
        image.convert("RGB").save(out)
    return out


def test_the_check_passes_on_an_engine_that_answers_as_pytorch(program):
    done = program("--check")
    assert done.returncode == 0, done.stderr
    assert "4 photographs: relative L2 0.00e+00" in done.stdout
    assert "same class 4: passed" in done.stdout
    assert "loaded plugins/libstormrt_plugins.so" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("does", ["wrong", "nan"])
def test_the_check_fails_on_other_answers(program, does):
    done = program("--check", does=does)
    assert done.returncode == 1
    assert "FAILED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "does", "env", "code", "says"),
    [
        (["--check"], "none", {}, 3, "built by tensorrt 10.3.0 for SM 7.5"),
        (["--check"], "fails", {}, 3, "did not run the engine"),
        (["--check"], "right", {"FAKE_NO_GPU": "1"}, 3, "there is no GPU: no device"),
        (["--check", "--plugins", "nowhere.so"], "right", {}, 2, "nowhere.so: cannot be read"),
        (["--check", "--engine", "nowhere"], "right", {}, 2, "nowhere: cannot be read"),
        ([], "right", {}, 2, "give photographs (.ppm), or --check"),
        (["--chek"], "right", {}, 2, "--chek: unknown"),
        (["--engine"], "right", {}, 2, "without its value"),
        (["nowhere.ppm"], "right", {}, 2, "nowhere.ppm: cannot be read"),
        (["--check", "x.ppm"], "right", {}, 2, "give photographs (.ppm), or --check"),
    ],
)
def test_what_is_refused_is_said_in_one_line_with_its_exit_code(
    program, arguments, does, env, code, says
):
    done = program(*arguments, does=does, **env)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_library_that_tensorrt_does_not_take_is_named(program):
    (program.package / "bad.so").write_bytes(b"no library")
    done = program("--check", "--plugins", "bad.so")
    assert done.returncode == 3
    assert "bad.so: TensorRT does not take it" in done.stderr


def test_a_photograph_gets_its_five_classes_the_most_probable_first(program, tmp_path):
    photo = ppm(packaged_photographs()[0], tmp_path / "a.ppm")
    done = program(photo)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "%" in line]
    assert {line.split("%", 1)[1].strip() for line in lines} == set(CLASSES)
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_damaged_golden_data_is_refused(program):
    path = program.package / "golden_images.f32"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-4])
        done = program("--check")
    finally:
        path.write_bytes(whole)
    assert done.returncode == 2
    assert "golden data is damaged" in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no binary PPM"),
        (b"P3\n1 1\n255\n0 0 0\n", "is no binary PPM"),
        (b"P6\n2 2\n255\n" + bytes(11), "ends before its last pixel"),
        (b"P6\n0 2\n255\n", "is no binary PPM"),
        (b"P6\n-1 2\n255\n", "is no binary PPM"),
        (b"P6\n99999999 99999999\n255\n", "is no binary PPM"),
        (b"P6\n1 1\n65535\n" + bytes(6), "is no binary PPM"),
    ],
)
def test_a_file_that_is_no_photograph_is_refused(program, tmp_path, content, says):
    path = tmp_path / "bad.ppm"
    path.write_bytes(content)
    done = program(path)
    assert done.returncode == 2
    assert says in done.stderr


def test_comments_in_a_photographs_header_are_skipped(program, tmp_path):
    path = tmp_path / "c.ppm"
    path.write_bytes(b"P6 # made by hand\n# two\n2 2\n255\n" + bytes(range(12)))
    assert program(path).returncode == 0


def test_photographs_are_prepared_as_stormrt_does(tmp_path):
    """Pillow's resizing, done again: at most one of 255 levels apart, and seldom that."""
    package = packaged(tmp_path)
    main = tmp_path / "main"
    main.mkdir()
    shutil.copyfile(package / "preprocess.h", main / "preprocess.h")
    (main / "dump.cpp").write_text("""
#include <cstdio>
#include "preprocess.h"
int main(int, char** argv) {
    stormrt::Preprocessing const how{std::stoi(argv[2]), std::stoi(argv[3]),
        {0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}, 256.0 / 224.0};
    auto const input = stormrt::preprocess(stormrt::readPpm(argv[1]), how);
    std::fwrite(input.data(), sizeof(float), input.size(), stdout);
}
""")
    program = compiled(main, tmp_path / "dump")
    level = 1 / 255 / 0.224
    photographs = packaged_photographs()[::5]
    for path, (height, width) in zip(
        photographs, [(64, 64), (HEIGHT, WIDTH), (700, 900), (96, 33)], strict=False
    ):
        photo = ppm(path, tmp_path / "photo.ppm")
        out = subprocess.run(
            [program, photo, str(height), str(width)], capture_output=True, check=True
        ).stdout
        found = np.frombuffer(out, np.float32).reshape(3, height, width)
        difference = np.abs(found - preprocess(path, height, width))
        assert difference.max() <= 1.01 * level, (path.name, height, width)
        assert (difference > 0.01 * level).mean() < 0.01, (path.name, height, width)


def test_constants_are_the_manifests(tmp_path):
    header = (packaged(tmp_path, engine="tensorrt_rtx") / "model.h").read_text(encoding="utf-8")
    values = dict(re.findall(r"constexpr \w+ (k\w+)(?:\[\])? = (.+);", header))
    assert values["kHeight"] == str(HEIGHT)
    assert values["kWidth"] == str(WIDTH)
    assert values["kClasses"] == str(len(CLASSES))
    assert values["kPlugins"] == '""'
    assert values["kMostRelativeL2"] == "0.01"
    assert r'"a \"quoted\" name",' in header
    assert '"Köln",' in header


def test_the_golden_files_are_the_first_golden_photographs(tmp_path):
    folder = packaged(tmp_path)
    images, logits = golden(tmp_path / "bundle")
    np.testing.assert_array_equal(
        np.fromfile(folder / "golden_images.f32", "<f4"), images[:4].ravel()
    )
    np.testing.assert_array_equal(
        np.fromfile(folder / "golden_logits.f32", "<f4"), logits[:4].ravel()
    )


def test_a_tensorrt_rtx_engine_is_taken_and_cmake_links_its_runtime(tmp_path):
    folder = packaged(tmp_path, engine="tensorrt_rtx")
    assert (folder / "engine.plan").read_bytes() == b"a plan of tensorrt_rtx"
    assert "set(STORMRT_RUNTIME tensorrt_rtx " in (folder / "CMakeLists.txt").read_text()
    # trtexec would put TensorRT's plan in its place.
    assert not (folder / "build_engine.sh").exists()


def test_by_its_own_cmake_it_compiles_links_and_starts_against_tensorrt(tmp_path):
    """TensorRT 10.14's headers, the lean runtime of 10.16: as far as a machine without GPU goes."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no CMake")
    headers, library = require_toolchain().headers, lean_library("10.16.1.11")
    package = packaged(tmp_path, engine="tensorrt")
    build = tmp_path / "build"
    options = [
        f"-DTENSORRT_INCLUDE_DIR={headers.folder}",
        f"-DTENSORRT_LIBRARY={library}",
        "-DCMAKE_CXX_FLAGS=-Werror",
    ]
    for command in ([cmake, "-S", package, "-B", build, *options], [cmake, "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [build / "classify", "--check"], cwd=package, capture_output=True, text=True, check=False
    )
    # Without a driver CUDA refuses; with one, TensorRT refuses what is no plan.
    assert done.returncode == 3
    assert "error: " in done.stderr
