# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of benchmarks/results/ into the docs, between their markers.

python benchmarks/render_figures.py           # rewrites the files
python benchmarks/render_figures.py --check   # exit code 1 where a file is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def table(headings: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *[[str(c) for c in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def whole_models(content: dict[str, Any]) -> str:
    """Export, build and CPU speed, from ``export_and_build.json``."""
    machine = content["environment"]
    rows = [
        [
            f"{r['model']}, {r['asked']}",
            r["export_seconds"],
            r["native_nodes_fp32"],
            r["onnx_fp32_mib"],
            r["rtx_build_seconds"],
            r["peak_rss_mib"],
            r["eager_ms"],
            r["onnxruntime_ms"],
            r["eager_over_onnxruntime"],
        ]
        for r in content["rows"]
    ]
    headings = ["224 x 224, batch 1", "export s", "native nodes", "ONNX MiB (FP32)"]
    headings += ["TensorRT-RTX build s (FP16, SM 7.5)", "peak RSS MiB", "PyTorch eager ms"]
    headings += ["onnxruntime ms", "ratio"]
    caption = f"{machine['cpus']} CPUs ({machine['cpu']}), FP32 in PyTorch and onnxruntime."
    return f"{table(headings, rows)}\n\n{caption} The engines were not run."


def scan_kernels(content: dict[str, Any]) -> str:
    """The scan's kernel, from ``plugins.json``."""
    rows = [
        [
            " x ".join(map(str, r["shape"])),
            f"{1e3 * r['default_ms']:.1f}",
            f"{1e3 * r['best_ms']:.1f}",
            f"{1e3 * r['cold_ms']:.1f}",
            f"{1e3 * r['roofline_ms']:.1f}",
            f"{r['roofline_share']:.0%}",
            f"{r['pytorch_ms'] / r['best_ms']:.0f}",
        ]
        for r in content["scan_fp16_n1"]
    ]
    headings = ["B x D x H x W", "default us", "best tactic us", "cold L2 us", "roofline us"]
    headings += ["share of roofline", "times PyTorch ops"]
    caption = f"{content['environment']['gpu']}, copy bandwidth {content['copy_gb_s']:.0f} GB/s."
    return f"{table(headings, rows)}\n\n{caption}"


def gpu_model(content: dict[str, Any]) -> str:
    """VMamba-T on the GPU, from ``plugins.json``."""
    rows = [
        [r["storm"], r["batch"], r["ms"], f"{r['scan_share_of_kernel_time']:.1%}"]
        for r in content["vmamba_tiny_s1l8_fp16_graph"]
    ]
    caption = f"{content['environment']['gpu']}, FP16, 224 x 224, one CUDA graph."
    return f"{table(['STORM', 'batch', 'ms', 'scan, of kernel time'], rows)}\n\n{caption}"


def checked(content: dict[str, Any]) -> str:
    """The comparison with FP64, from ``plugins.json``."""
    c, gather = content["check"], content["gather_fp16_16x192x56x56_to_48x48"]
    worst = c["worst_relative_l2"]
    return (
        f"{c['checked']} of {c['combinations']} combinations compared with FP64, "
        f"{len(c['failures'])} failures; worst relative L2 {worst['torch.float32']:.1e} in FP32 "
        f"and {worst['torch.float16']:.1e} in FP16. The gather of (16, 192, 56 x 56) to 48 x 48 "
        f"lines in FP16 moves its kept bytes at {gather['share_of_copy_bandwidth']:.0%} of the "
        f"same run's copy bandwidth (its operands fit the L2 cache)."
    )


BLOCKS = (
    ("README.md", "whole-models", "export_and_build.json", whole_models),
    ("docs/plugins.md", "scan-kernels", "plugins.json", scan_kernels),
    ("docs/plugins.md", "gpu-model", "plugins.json", gpu_model),
    ("docs/plugins.md", "checked", "plugins.json", checked),
)


def render(text: str, name: str, body: str) -> str:
    """Replace what stands between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""
    pattern = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    rendered, count = pattern.subn(lambda m: f"{m[1]}{body}\n{m[2]}", text)
    if count != 1:
        raise SystemExit(f"markers of {name!r}: {count} pairs, expected 1")
    return rendered


def main() -> int:
    """Render every block; 1 where ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for file, name, source, block in BLOCKS:
        path = ROOT / file
        text = path.read_text()
        rendered = render(text, name, block(json.loads((RESULTS / source).read_text())))
        if rendered != text:
            stale.append(f"{file}: {name}")
            if not check:
                path.write_text(rendered)
    print("out of date: " + ", ".join(stale) if check and stale else f"changed: {len(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
