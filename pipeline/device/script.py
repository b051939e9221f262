# SPDX-License-Identifier: Apache-2.0
"""``build_engine.py``: the device phase's modules in one file, as they are.

There is no second copy to keep: the file is a template, and every module that the phase imports,
found by reading its imports. What plugins are compiled from goes into an archive beside it, for
bundles whose graph has any.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import stormrt
from stormrt.pipeline.at_template import AtTemplate
from stormrt.pipeline.device.names import PLUGIN_SOURCES_NAME

ENTRY = "stormrt.pipeline.device.script_main"
_PLUGINS = "stormrt.plugins"
_NOT_NEEDED = ("stormrt.runtime.manifest_record",)
"""Behind ``Engine.load``, which the phase does not call: it reads manifests with pydantic."""
_PLUGIN_FILES = (".py", ".cpp", ".cu", ".cuh", ".h")
_PLUGIN_MODULES = frozenset(
    f"{name}.py"
    for name in ("__init__", "builder", "cpp_header", "native", "registry", "spec", "toolchain")
)
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""The same sources give the same archive."""


@cache
def build_script() -> str:
    """The text of ``build_engine.py``: the same for every bundle of a release."""
    root = resources.files("stormrt.pipeline.device")
    text = root.joinpath("build_engine.py.template").read_text(encoding="utf-8")
    sources = "\n\n".join(_entry(name, source) for name, source in modules().items())
    return AtTemplate(text).substitute(
        version=stormrt.__version__, plugin_sources=PLUGIN_SOURCES_NAME, sources=sources
    )


def modules() -> dict[str, str]:
    """The source of every module that the script needs, by its name."""
    found: dict[str, str] = {}
    wanted = [ENTRY]
    while wanted:
        name = wanted.pop()
        if name in found or name in _NOT_NEEDED or name.startswith(f"{_PLUGINS}."):
            continue
        if name == "stormrt":
            # Its own text checks the folders of a checkout.
            found[name] = f'__version__ = "{stormrt.__version__}"\n'
            continue
        found[name] = _path_of(name).read_text(encoding="utf-8")
        wanted += _imports(found[name])
        wanted.append(name.rpartition(".")[0])
    found.setdefault(_PLUGINS, _path_of(_PLUGINS).read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def plugin_sources() -> bytes:
    """The archive that plugins are compiled from: C++, CUDA, and what generates headers."""
    folder = _path_of(_PLUGINS).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            is_wanted = path.suffix in _PLUGIN_FILES and (
                path.suffix != ".py" or path.name in _PLUGIN_MODULES
            )
            if is_wanted and path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _FIXED_TIME)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


def _path_of(name: str) -> Path:
    base = Path(stormrt.__file__).parent.joinpath(*name.split(".")[1:])
    package = base / "__init__.py"
    return package if package.is_file() else base.with_suffix(".py")


def _imports(source: str) -> list[str]:
    """Modules of ours that a source imports when it runs, functions included."""
    names = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name for name in below if name.startswith("stormrt") and _is_module(name)]
    return [name for name in names if name.split(".")[0] == "stormrt"]


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one, without what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _running(child)


def _is_module(name: str) -> bool:
    return _path_of(name).is_file()


def _entry(name: str, source: str) -> str:
    if "'''" in source or source.endswith("\\"):
        raise ValueError(f"{name} cannot stand in a raw string: it has three single quotes")
    return f"SOURCES[{name!r}] = r'''{source}'''"
