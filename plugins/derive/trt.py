# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> what TensorRT should find in a library: its creators."""

from __future__ import annotations

from typing import NamedTuple

from stormrt.plugins.derive.cpp_header import native_plugins
from stormrt.plugins.spec import DOMAIN


class CreatorId(NamedTuple):
    """What TensorRT knows a creator by."""

    name: str
    version: str
    namespace: str


def expected_creators() -> tuple[CreatorId, ...]:
    """The creators that a library built from these sources has."""
    return tuple(CreatorId(s.name, s.version, DOMAIN) for s in native_plugins())
