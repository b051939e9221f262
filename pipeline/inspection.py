# SPDX-License-Identifier: Apache-2.0
"""Facts about a file or folder, for ``stormrt inspect``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.schema import MANIFEST_NAME, Manifest

Facts = dict[str, object]


def inspect_path(path: Path) -> Facts:
    """Facts about an output folder, an ONNX file or a checkpoint.

    Raises:
        InputError: The path does not exist, is damaged, or is of no known kind.
        EnvironmentMissingError: The package that reads it is missing.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError("there is no such file or folder", where=str(path))
    try:
        if path.suffix == ".onnx":
            return _onnx(path)
        if path.suffix in (".pth", ".pt", ".safetensors"):
            return _checkpoint(path)
    except ModuleNotFoundError as error:
        raise EnvironmentMissingError(
            f"the package {error.name!r} is not installed",
            fix='pip install "stormrt[workstation]"',
        ) from error
    raise InputError(
        "this kind of file is not known",
        where=str(path),
        expected="an output folder, .onnx, .pth, .pt or .safetensors",
    )


def _folder(path: Path) -> Facts:
    manifest = Manifest.read(path / MANIFEST_NAME)
    spec = manifest.model
    return {
        "model": spec.name,
        "input": f"{spec.batch} x 3 x {spec.height} x {spec.width}",
        "storm": spec.plan.describe(),
        "weights": spec.checkpoint or f"random, seed {spec.seed}",
        "target": f"{manifest.target}, {manifest.precision}, {manifest.runtime}",
        "lowering": manifest.lowering,
        "plugins": [f"{p.count} x {p.name} version {p.version}" for p in manifest.plugins],
        "engine": manifest.engine
        and f"{manifest.engine.file.name}, SM {manifest.engine.sm}, "
        f"{manifest.engine.runtime} {manifest.engine.runtime_version}",
        "files": [f"{f.name} {f.size_bytes} bytes {f.sha256}" for f in manifest.files],
        "tools": [f"{t.name} {t.version}" for t in manifest.tools],
    }


def _onnx(path: Path) -> Facts:
    from stormrt.pipeline.onnx_file import load_onnx, plugin_uses
    from stormrt.pipeline.rewrite.values import value_types

    model = load_onnx(path)
    types = value_types(model.graph)
    ops = Counter(node.op_type for node in model.graph.node)
    return {
        "opsets": [f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import],
        "inputs": [f"{v.name}: {types[v.name]}" for v in model.graph.input],
        "outputs": [f"{v.name}: {types[v.name]}" for v in model.graph.output],
        "nodes": len(model.graph.node),
        "ops": [f"{count} x {op}" for op, count in ops.most_common()],
        "plugins": [f"{p.count} x {p.name} version {p.version}" for p in plugin_uses(model)],
        "size_bytes": path.stat().st_size,
    }


def _checkpoint(path: Path) -> Facts:
    from stormrt.storm.checkpoint import fitting_variant, read_state_dict

    weights = read_state_dict(path)
    fits = fitting_variant(weights)
    return {
        "tensors": len(weights),
        "parameters": sum(t.numel() for t in weights.values()),
        "variant": fits[0] if fits else "none that stormrt knows",
        "classes": fits[1] if fits else "unknown",
    }
