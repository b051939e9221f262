# SPDX-License-Identifier: Apache-2.0
"""Finds the operators: every sub-package of ``plugins/`` that declares a ``SPEC``."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from types import ModuleType

import stormrt.plugins
from stormrt.errors import InputError
from stormrt.plugins.spec import PluginSpec


@cache
def all_plugins() -> dict[str, PluginSpec]:
    """Every operator by ONNX ``op_type``, in alphabetical order.

    Raises:
        InputError: Two folders declare the same name.
    """
    found: dict[str, PluginSpec] = {}
    for module in sorted(pkgutil.iter_modules(stormrt.plugins.__path__), key=lambda m: m.name):
        if not module.ispkg or module.name == "derive":
            continue
        package = importlib.import_module(f"stormrt.plugins.{module.name}")
        spec = getattr(package, "SPEC", None)
        if not isinstance(spec, PluginSpec):
            raise InputError(
                "a plugin folder declares no SPEC",
                where=f"plugins/{module.name}/__init__.py",
                expected="SPEC = PluginSpec(...)",
            )
        if spec.name in found:
            raise InputError(
                f"plugin {spec.name!r} is declared twice", where=f"plugins/{module.name}"
            )
        if spec.torch_name != module.name:
            raise InputError(
                "a plugin folder and its PyTorch operator differ in name",
                where=f"plugins/{module.name}/__init__.py",
                got=spec.torch_name,
                expected=module.name,
            )
        found[spec.name] = spec
    return found


def plugin_module(spec: PluginSpec, name: str) -> ModuleType:
    """Import one module of a plugin's folder, such as ``torch_op`` or ``onnx_function``."""
    return importlib.import_module(f"stormrt.plugins.{spec.torch_name}.{name}")
