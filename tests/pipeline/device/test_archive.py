# SPDX-License-Identifier: Apache-2.0
"""Unpacking a bundle: what comes out, and what an archive may not do.

What can go wrong: a file is written outside the folder; a small archive fills the disk; a damaged
one leaves half a folder; a link leads elsewhere.
"""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from stormrt.errors import InputError
from stormrt.pipeline.device import archive
from stormrt.pipeline.device.archive import is_archive, unpack
from stormrt.pipeline.device_build import build_bundle
from tests.pipeline.device.bundles import make_bundle

FORMATS = {
    ".tar": "tar",
    ".tar.gz": "gztar",
    ".tar.xz": "xztar",
    ".tar.bz2": "bztar",
    ".zip": "zip",
}


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def bundle(tmp_path, rng):
    folder = make_bundle(tmp_path / "made" / "b", rng)
    (folder / "plugins").mkdir()
    (folder / "plugins" / "lib.so").write_bytes(b"library")
    return folder


@pytest.mark.parametrize("inside", [True, False], ids=["in-a-folder", "at-the-top"])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_kind_of_archive_gives_the_bundle(tmp_path, bundle, ending, inside):
    base = {"root_dir": bundle.parent, "base_dir": "b"} if inside else {"root_dir": bundle}
    made = Path(shutil.make_archive(str(tmp_path / "board"), FORMATS[ending], **base))
    assert made.name == f"board{ending}"
    assert is_archive(made)
    folder = unpack(made)
    assert folder == tmp_path / "board"
    assert content(folder) == content(bundle)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["board", f"board{ending}", "made"]


def test_an_archive_is_built_from_like_a_folder(tmp_path, rng, trt):
    bundle = make_bundle(tmp_path / "made", rng)
    made = shutil.make_archive(str(tmp_path / "b"), "gztar", bundle)
    done = build_bundle(Path(made))
    assert done.folder == tmp_path / "b"
    assert done.report.passed
    assert (done.folder / "engine.plan").is_file()


def test_a_folder_that_is_there_already_is_left_alone(tmp_path, bundle):
    made = Path(shutil.make_archive(str(tmp_path / "b"), "zip", bundle))
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="there already") as caught:
        unpack(made)
    assert "stormrt build" in str(caught.value.fix)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_folder_is_no_archive_whatever_its_name(tmp_path):
    (tmp_path / "b.zip").mkdir()
    assert not is_archive(tmp_path / "b.zip")
    assert not is_archive(tmp_path / "b")


# --- What is refused -----------------------------------------------------------------------------


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = 1 if kind == tarfile.REGTYPE else 0
    return member


def zip_with(path: Path, *members: tuple[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, b"x")
    return path


def refused(path: Path) -> InputError:
    """The refusal. Nothing is left, neither beside the archive nor anywhere above it."""
    before = sorted(p for p in path.parent.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        unpack(path)
    assert sorted(p for p in path.parent.parent.rglob("*")) == before
    return caught.value


BAD_NAMES = ["/etc/passwd", "../outside", "a/../../outside", "a\\..\\b", "C:/x", "a\nb"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    for path in (
        tar_with(tmp_path / "t.tar.gz", tar_member(name)),
        zip_with(tmp_path / "z.zip", (name, stat.S_IFREG)),
    ):
        assert "name that leads out" in str(refused(path))


@pytest.mark.parametrize(
    "member",
    [
        tar_member("model.onnx", tarfile.SYMTYPE, "/etc/passwd"),
        tar_member("model.onnx", tarfile.LNKTYPE, "../outside"),
        tar_member("pipe", tarfile.FIFOTYPE),
        tar_member("disk", tarfile.BLKTYPE),
    ],
    ids=["symbolic-link", "hard-link", "pipe", "device"],
)
def test_links_and_devices_are_refused(tmp_path, member):
    assert "link, a device" in str(refused(tar_with(tmp_path / "t.tar.gz", member)))


def test_a_link_in_a_zip_is_refused(tmp_path):
    assert "a link" in str(refused(zip_with(tmp_path / "z.zip", ("m", stat.S_IFLNK | 0o777))))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_is_refused(tmp_path):
    twice = zip_with(tmp_path / "z.zip", ("m", 0), ("m", 0))
    assert "twice" in str(refused(twice))
    twice = tar_with(tmp_path / "t.tar.gz", tar_member("m"), tar_member("./m"))
    assert "twice" in str(refused(twice))


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_more_than_a_bundle_can_be_is_refused_before_it_is_written(tmp_path, monkeypatch, ending):
    source = tmp_path / "big"
    source.mkdir()
    for index in range(3):
        (source / str(index)).write_bytes(bytes(100_000))  # packs into nearly nothing
    made = Path(shutil.make_archive(str(tmp_path / "b"), FORMATS[ending], source))
    monkeypatch.setattr(archive, "MOST_BYTES", 250_000)
    assert "more than a bundle can" in str(refused(made))
    monkeypatch.setattr(archive, "MOST_BYTES", 1 << 30)
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    assert "more than a bundle can" in str(refused(made))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_damaged_archive_is_one_error_at_any_place(tmp_path, bundle, rng, ending):
    made = Path(shutil.make_archive(str(tmp_path / "x" / "b"), FORMATS[ending], bundle))
    good = made.read_bytes()
    for _ in range(10):
        data = bytearray(good[: int(rng.integers(0, len(good)))])
        if len(data) and rng.random() < 0.5:
            data[int(rng.integers(len(data)))] ^= 0xFF
        made.write_bytes(data)
        try:
            folder = unpack(made)
        except InputError:
            assert [p.name for p in made.parent.iterdir()] == [made.name]
        else:  # cut behind the last file
            shutil.rmtree(folder)
    made.write_bytes(b"")
    refused(made)


def test_an_archive_of_something_else_is_no_bundle(tmp_path):
    assert "holds no bundle" in str(refused(zip_with(tmp_path / "z.zip", ("readme", 0))))


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(InputError, match="no such archive"):
        unpack(tmp_path / "nowhere.tar.gz")
