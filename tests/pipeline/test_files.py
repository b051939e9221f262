# SPDX-License-Identifier: Apache-2.0
"""Atomic files and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.errors import InputError
from stormrt.pipeline import files
from stormrt.pipeline.files import (
    atomic_path,
    code_digest,
    publish,
    require_folder,
    sha256_file,
    sha256_text,
    write_text,
)
from tests.pipeline.support import environment


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_digests_are_those_of_hashlib(tmp_path, rng):
    content = rng.bytes((1 << 20) + 17)
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    assert sha256_text("ä") == hashlib.sha256("ä".encode()).hexdigest()


def test_the_digest_of_the_code_covers_every_folder_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "stormrt"
    (tmp_path / "elsewhere").mkdir()
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "linked").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(files.stormrt, "__file__", str(package / "__init__.py"))
    seen = []
    for path, content in (
        ("elsewhere/a.py", "1"),
        ("elsewhere/a.py", "2"),
        ("elsewhere/t.toml", "1"),
        ("elsewhere/b.py", "1"),
    ):
        (tmp_path / path).write_text(content)
        seen.append(code_digest.__wrapped__())
    assert len(set(seen)) == 4
    (tmp_path / "elsewhere/notes.md").write_text("not code")
    assert code_digest.__wrapped__() == seen[-1]


class TestAtomicPath:
    def test_the_file_appears_when_it_is_whole(self, tmp_path):
        path = tmp_path / "new" / "f.txt"
        with atomic_path(path) as temporary:
            temporary.write_text("whole")
            assert not path.exists()
            assert temporary.parent == path.parent, "a rename across disks would not be atomic"
        assert path.read_text() == "whole"
        assert names(path.parent) == ["f.txt"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_failure_leaves_the_earlier_file_and_no_other(self, tmp_path):
        path = tmp_path / "f.txt"
        path.write_text("earlier")

        def write_half() -> None:
            with atomic_path(path) as temporary:
                temporary.write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            write_half()
        assert path.read_text() == "earlier"
        assert names(tmp_path) == ["f.txt"]

    def test_a_full_disk_is_told_with_the_file_and_a_remedy(self, tmp_path):
        def fill() -> None:
            with atomic_path(tmp_path / "f.txt"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(InputError, match="could not write") as caught:
            fill()
        assert caught.value.got == "No space left on device"
        assert "df -h" in (caught.value.fix or "")
        assert names(tmp_path) == []

    @pytest.mark.parametrize("folder", ["/proc/stormrt", "file"])
    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path, folder):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="could not write"):
            write_text(tmp_path / folder / "f.txt", "text")

    def test_a_process_killed_in_the_middle_leaves_the_earlier_file(self, tmp_path):
        path = tmp_path / "f.txt"
        path.write_text("earlier")
        code = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from stormrt.pipeline.files import atomic_path\n"
            "with atomic_path(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_text('half')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment())
        assert done.returncode == -9
        assert path.read_text() == "earlier"
        left = [name for name in names(tmp_path) if name != "f.txt"]
        assert all(name.startswith(".f.txt.") and name.endswith(".tmp") for name in left)


def test_publishing_copies_once(tmp_path):
    source, published = tmp_path / "s", tmp_path / "out" / "d"
    source.write_bytes(b"one")
    publish(source, published)
    assert published.read_bytes() == b"one"
    before = published.stat()
    publish(source, published)
    after = published.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    source.write_bytes(b"two")
    publish(source, published)
    assert published.read_bytes() == b"two"


class TestRequireFolder:
    def test_a_folder_and_a_path_that_can_become_one_are_taken(self, tmp_path):
        require_folder(tmp_path)
        require_folder(tmp_path / "a" / "b" / "c")
        assert names(tmp_path) == [], "nothing is created"

    @pytest.mark.parametrize("path", ["file", "file/a/b"])
    def test_a_file_and_a_path_below_one_are_refused(self, tmp_path, path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file") as caught:
            require_folder(tmp_path / path)
        assert caught.value.where == str(tmp_path / "file")
