# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> C++: one ``<torch_name>_contract.h`` for each operator, and a list of them.

The files are written into the build folder whenever the plugin library is built, and never
committed: a copy in git could only agree with the SPEC or be wrong. Builds need Python anyway.
Run as a module by CMake (``python -m stormrt.plugins.derive.cpp_header --help``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN, PluginSpec, TensorSpec

SOURCES = Path(__file__).resolve().parents[1]
"""The folder of the operators, ``plugins/``."""
LIST_NAME = "plugin_list.h"

_TYPES = {"float32": "kFloat32", "float16": "kFloat16", "int32": "kInt32", "T": "kIo"}


def native_plugins(sources: Path = SOURCES) -> tuple[PluginSpec, ...]:
    """Operators that have a ``plugin.cpp``, in the order of the library's list."""
    specs = all_plugins().values()
    return tuple(spec for spec in specs if (sources / spec.torch_name / "plugin.cpp").is_file())


def contract_digest(spec: PluginSpec) -> str:
    """Digest of all that C++ and Python must agree on: names, order, shapes, types, attributes."""

    def tensors(of: Iterable[TensorSpec]) -> list[tuple[str, tuple[str, ...], str]]:
        return [(t.name, t.shape, t.dtype) for t in of]

    contract = (
        spec.name,
        sorted(spec.attributes().items()),
        tensors(spec.inputs),
        tensors(spec.outputs),
        spec.io_dtypes,
        spec.constants,
    )
    return hashlib.sha256(json.dumps(contract).encode()).hexdigest()[:16]


def kernel_revision(spec: PluginSpec, sources: Path = SOURCES) -> str:
    """Digest of a kernel's own sources and the shared ones: a changed kernel voids old timings."""
    digest = hashlib.sha256()
    folder = sources / spec.torch_name
    own = [p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".h", ".cpp")]
    for path in sorted([*own, *(sources / "common").glob("*.cu*")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def symbols_of(spec: PluginSpec) -> tuple[str, ...]:
    """The symbols of a spec, in the order in which its shapes name them."""
    named = (
        factor
        for tensor in (*spec.inputs, *spec.outputs)
        for extent in tensor.shape
        for factor in extent.split("*")
    )
    return tuple(dict.fromkeys(named))


def contract_header(spec: PluginSpec, revision: str) -> str:
    """The text of one operator's header.

    Args:
        spec: The contract.
        revision: Digest of the kernel's sources, from ``kernel_revision``.
    """
    symbols = symbols_of(spec)
    constants = dict(spec.constants)
    tensors = (*spec.inputs, *spec.outputs)
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// Written by plugins/derive/cpp_header.py from plugins/{spec.torch_name}/__init__.py.",
        "#pragma once",
        "",
        '#include "common/operator.h"',
        "",
        f"namespace stormrt::{spec.torch_name} {{",
        "",
        *_enumeration("Input", ((t.name, f"{t.doc}, {_shape(t)}") for t in spec.inputs)),
        *_enumeration("Output", ((t.name, f"{t.doc}, {_shape(t)}") for t in spec.outputs)),
        *_enumeration("Symbol", ((s, None) for s in symbols)),
        f"inline constexpr SymbolContract kSymbols[] = {{{_symbols(symbols, constants)}}};",
        "",
        "inline constexpr TensorContract kTensors[] = {",
        *(_tensor(t) for t in tensors),
        "};",
        "",
        "inline constexpr TensorType kIoTypes[] = {"
        + ", ".join(f"TensorType::{_TYPES[d]}" for d in spec.io_dtypes)
        + "};",
        "",
        "inline constexpr AttributeContract kAttributes[] = {",
        *(f"    {{{_text(k)}, {_text(v)}}}," for k, v in spec.attributes().items()),
        "};",
        "",
        "inline constexpr Contract kContract{",
        f"    {_text(spec.name)}, {_text(spec.version)}, {_text(DOMAIN)},",
        f"    kTensors, {len(spec.inputs)}, {len(spec.outputs)},",
        f"    kSymbols, {len(symbols)},",
        f"    kIoTypes, {len(spec.io_dtypes)},",
        f"    kAttributes, {len(spec.attributes())},",
        f"    {_text(revision)}}};",
        f"static_assert({len(tensors)} <= kMaxTensors && {len(symbols)} <= kMaxSymbols &&",
        f"              {len(spec.attributes())} <= kMaxAttributes);",
        "",
        "//! Defined in plugin.cpp.",
        "extern Operator const kOperator;",
        "",
        f"}}  // namespace stormrt::{spec.torch_name}",
        "",
    ]
    return "\n".join(lines)


def list_header(specs: Sequence[PluginSpec], archs: str, source_digest: str) -> str:
    """The text of the list of operators, with what the library tells about its build.

    Args:
        specs: The operators of the library.
        archs: What the kernels were compiled for, such as ``sm_75 compute_75``.
        source_digest: Digest of the library's sources.
    """
    told = {
        "archs": archs.split(),
        "sources": source_digest,
        "operators": {
            s.name: {"version": s.version, "contract": contract_digest(s)} for s in specs
        },
    }
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Written by plugins/derive/cpp_header.py from the plugin folders.",
        "#pragma once",
        "",
        *(f'#include "{s.torch_name}_contract.h"' for s in specs),
        "",
        f"#define STORMRT_PLUGINS_JSON {_text(json.dumps(told))}",
        "",
        "namespace stormrt {",
        "",
        "inline constexpr Operator const* kOperators[] = {",
        *(f"    &{s.torch_name}::kOperator," for s in specs),
        "};",
        "",
        "}  // namespace stormrt",
        "",
    ]
    return "\n".join(lines)


def source_digest(sources: Path = SOURCES) -> str:
    """Digest of every C++ and CUDA file of the library and of every contract."""
    digest = hashlib.sha256()
    for spec in native_plugins(sources):
        digest.update(f"{spec.torch_name} {contract_digest(spec)}\n".encode())
    folders = ["common", "autoload", *(s.torch_name for s in native_plugins(sources))]
    for folder in folders:
        for path in sorted((sources / folder).iterdir()):
            if path.suffix in (".cpp", ".cu", ".cuh", ".h"):
                digest.update(f"{folder}/{path.name}\n".encode())
                digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def write_headers(out: Path, archs: str, sources: Path = SOURCES) -> None:
    """Write every header. A file that has the right text already keeps its time of change.

    Args:
        out: The folder for the headers.
        archs: What the kernels are compiled for, for the library's own account of itself.
        sources: The folder of the operators.
    """
    out.mkdir(parents=True, exist_ok=True)
    specs = native_plugins(sources)
    texts = {
        f"{s.torch_name}_contract.h": contract_header(s, kernel_revision(s, sources)) for s in specs
    }
    texts[LIST_NAME] = list_header(specs, archs, source_digest(sources)[:16])
    for name, text in texts.items():
        path = out / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def identifier(name: str) -> str:
    """``dt_bias`` -> ``kDtBias``, ``H'`` -> ``kHPrime``."""
    words = re.split(r"[^0-9A-Za-z]+", name.replace("'", "_prime"))
    return "k" + "".join(word[:1].upper() + word[1:] for word in words)


def _enumeration(name: str, members: Iterable[tuple[str, str | None]]) -> list[str]:
    rows = [
        f"    {identifier(member)} = {index},{f'  //!< {doc}' if doc else ''}"
        for index, (member, doc) in enumerate(members)
    ]
    return [f"struct {name} {{", "  enum : int32_t {", *rows, "  };", "};", ""]


def _shape(tensor: TensorSpec) -> str:
    return f"[{', '.join(tensor.shape)}]"


def _symbols(symbols: Sequence[str], constants: dict[str, int]) -> str:
    return ", ".join(f"{{{_text(s)}, {constants.get(s, 0)}}}" for s in symbols)


def _tensor(tensor: TensorSpec) -> str:
    extents = []
    for extent in tensor.shape:
        factors = [f"Symbol::{identifier(factor)}" for factor in extent.split("*")]
        extents.append(f"{{{len(factors)}, {{{', '.join(factors)}}}}}")
    return (
        f"    {{{_text(tensor.name)}, TensorType::{_TYPES[tensor.dtype]}, {len(extents)},\n"
        f"     {{{', '.join(extents)}}}}},"
    )


def _text(text: str) -> str:
    # JSON's escapes of ASCII text are C++'s.
    return json.dumps(text)


def main() -> None:
    """Write the headers, for CMake."""
    parser = argparse.ArgumentParser(description="Write the C++ contracts of the operators.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the headers")
    parser.add_argument("--archs", default="", help="what the kernels are compiled for")
    arguments = parser.parse_args()
    write_headers(arguments.out, arguments.archs)


if __name__ == "__main__":
    main()
