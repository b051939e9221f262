# SPDX-License-Identifier: Apache-2.0
"""The plugin host in this process, as far as it goes without a GPU.

The runner's tests on a GPU rest on it: were it to take what TensorRT refuses, they would show
nothing.
"""

from __future__ import annotations

import dataclasses

import pytest

from stormrt.plugins.spatial_unit_gather import SPEC
from tests.helpers.plugin_host import Extents, PluginHost

GATHER = (
    Extents("float16", (1, 5, 9, 7), (4, 5, 9, 7)),
    Extents("int32", (1, 6), (4, 6)),
    Extents("int32", (1, 4), (4, 4)),
    Extents("float16", (1, 5, 6, 4), (4, 5, 6, 4)),
)


@pytest.fixture(scope="session")
def host(tools, tmp_path_factory) -> PluginHost:
    return PluginHost(tools, tmp_path_factory.mktemp("plugin_host"))


def test_a_plugin_is_told_shapes_in_each_context(host, library):
    plugin = host.open(library.core, SPEC, GATHER)
    first, second = plugin.attach(), plugin.attach()
    del plugin  # contexts have plugins of their own
    for batch in (1, 4):
        told = [dataclasses.replace(t, most=(batch, *t.most[1:])) for t in GATHER]
        first.set_shapes(told)
        second.set_shapes(told)


def test_work_before_shapes_is_refused(host, library, capfd):
    session = host.open(library.core, SPEC, GATHER).attach()
    assert not session.enqueue([0, 0, 0, 0], 0)
    assert "before shapes were told" in capfd.readouterr().err


def test_types_that_the_plugin_does_not_take_are_refused(host, library, capfd):
    wrong = (dataclasses.replace(GATHER[0], dtype="int32"), *GATHER[1:])
    with pytest.raises(AssertionError):
        host.open(library.core, SPEC, wrong)
    assert "an unsupported combination" in capfd.readouterr().err


def test_a_library_without_the_operator_is_refused(host, library, capfd):
    other = dataclasses.replace(SPEC, name="NoSuchOperator")
    with pytest.raises(AssertionError):
        host.open(library.core, other, GATHER)
    assert "no operator NoSuchOperator" in capfd.readouterr().err
