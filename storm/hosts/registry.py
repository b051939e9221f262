# SPDX-License-Identifier: Apache-2.0
"""Hosts by name: a plan is checked against them, and anybody can add one. Free of PyTorch."""

from __future__ import annotations

import difflib
from typing import get_args

from stormrt.errors import InputError
from stormrt.storm.hosts import (
    clipped_output,
    dissimilarity,
    feature_norm,
    random,
    step_size,
    uniform,
)
from stormrt.storm.hosts.host import Host, Measure, Score

_hosts: dict[str, Host] = {
    module.HOST.name: module.HOST
    for module in (feature_norm, step_size, clipped_output, dissimilarity, uniform, random)
}


def register_host(name: str, score: Score, *, needs: Measure | None = None) -> Host:
    """Add a score under a name, which plans can use from then on (``host=NAME``).

    Args:
        name: Not taken yet.
        score: (map [B, C, H, W], measured [B, H, W] or None) -> [B, H, W], higher is kept. To be
            exported it must be made of operators with static shapes, and each image's score must
            depend on that image alone.
        needs: What the block before has to measure for it.

    Returns:
        The host.

    Raises:
        InputError: The name is taken or would not fit into a shorthand, or no block measures what
            the host needs.

    Example:
        >>> register_host("brightest", lambda x, measured: x.amax(1)).name
        'brightest'
        >>> unregister_host("brightest")
    """
    if not name or set(name) & set(",= \t\n"):
        raise InputError(
            "a host's name is a word that fits into the shorthand of a plan",
            got=repr(name),
            expected="no comma, no equals sign, no space",
        )
    if name in _hosts:
        raise InputError(f"there is a host {name!r} already", fix="give yours another name")
    if needs not in (*get_args(Measure), None):
        raise InputError(
            f"no block measures what the host {name!r} needs",
            got=repr(needs),
            expected=f"{', '.join(get_args(Measure))} or None",
        )
    host = Host(name, score, needs)
    _hosts[name] = host
    return host


def unregister_host(name: str) -> None:
    """Forget a host, so that its name is free; one that is not there is no error."""
    _hosts.pop(name, None)


def host_names() -> tuple[str, ...]:
    """Every name that a plan can use now, those of this package first."""
    return tuple(_hosts)


def get_host(name: str) -> Host:
    """Look a host up.

    Raises:
        InputError: No host has this name; the message suggests the nearest.
    """
    if name in _hosts:
        return _hosts[name]
    near = difflib.get_close_matches(name, _hosts, n=1)
    raise InputError(
        f"unknown host {name!r}",
        expected=", ".join(_hosts),
        fix=f"did you mean {near[0]!r}?" if near else "register_host(name, function) adds one",
    )
