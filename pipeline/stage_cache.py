# SPDX-License-Identifier: Apache-2.0
"""Skips stages whose inputs have not changed, and survives being killed at any moment.

Each stage writes its files under the work folder and then, last, a record: the digest of
everything that the stage depends on, and what it made with digests. A stage is skipped if its
record's key is the key wanted and the files still have their digests. A record is written
atomically after the files, so that a killed build leaves a stage either done or to be done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.files import code_digest, sha256_file, sha256_text, write_text
from stormrt.reading import parse_json, read_small

Artifact = TypeVar("Artifact")


class StageCache:
    """The work folder of one output folder.

    Args:
        folder: Where stages write.
        forced: Names of stages that run whatever their records say.
    """

    def __init__(self, folder: Path, forced: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self.forced = forced
        self.seconds: dict[str, float] = {}
        """Wall time of each stage that ran in this process, in seconds."""

    def key(self, stage: str, depends_on: Mapping[str, object]) -> str:
        """Digest of what a stage depends on; this package's own code is always a part of it."""
        facts = {"stage": stage, "code": code_digest(), **depends_on}
        return sha256_text(json.dumps(facts, sort_keys=True, default=str))

    def load(self, stage: str, kind: type[Artifact], key: str) -> Artifact | None:
        """What the stage made for this key, if it is all still there."""
        if stage in self.forced:
            return None
        try:
            record: Any = parse_json(read_small(self.folder / f"{stage}.json"))  # JSON
            if record["key"] != key:
                return None
            artifact = TypeAdapter(kind).validate_python(record["artifact"])
            made = [FileDigest(**entry) for entry in record["files"]]
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None  # no record, or one of another version: the stage runs
        if all(self._is_intact(entry) for entry in made):
            return artifact
        return None

    def run(
        self,
        stage: str,
        kind: type[Artifact],
        key: str,
        compute: Callable[[], Artifact],
        files_of: Callable[[Artifact], tuple[FileDigest, ...]],
    ) -> Artifact:
        """Run a stage and record it.

        Args:
            stage: Its name.
            kind: Type of its artefact.
            key: From ``key``.
            compute: Does the work and writes the stage's files into the work folder.
            files_of: The files that the artefact stands for.

        Raises:
            InputError: Whatever the stage raises, or a record that cannot be written.
        """
        record = self.folder / f"{stage}.json"
        # Files are about to be replaced: from here on the old record would tell of files that
        # are gone.
        record.unlink(missing_ok=True)
        start = time.perf_counter()
        artifact = compute()
        self.seconds[stage] = time.perf_counter() - start
        content = {
            "key": key,
            "artifact": TypeAdapter(kind).dump_python(artifact, mode="json"),
            "files": [
                {"name": f.name, "sha256": f.sha256, "size_bytes": f.size_bytes}
                for f in files_of(artifact)
            ],
            "seconds": round(self.seconds[stage], 3),
        }
        write_text(record, json.dumps(content, indent=2) + "\n")
        return artifact

    def require(self, stage: str, kind: type[Artifact], key: str) -> Artifact:
        """As ``load``, for a stage that the user asked not to run.

        Raises:
            InputError: The stage has not run with these inputs.
        """
        artifact = self.load(stage, kind, key)
        if artifact is None:
            raise InputError(
                f"stage {stage!r} has not been run with these options, so that later stages "
                "cannot start after it",
                where=str(self.folder),
                fix="leave --from out, or start from an earlier stage",
            )
        return artifact

    def _is_intact(self, entry: FileDigest) -> bool:
        path = self.folder / entry.name
        return (
            path.is_file()
            and path.stat().st_size == entry.size_bytes
            and sha256_file(path) == entry.sha256
        )
