# SPDX-License-Identifier: Apache-2.0
"""The language in which a custom operator is declared, once.

A ``PluginSpec`` is the only place where an operator's name, inputs, outputs and attributes are
written down. The PyTorch operator's signature and fake kernel, the ONNX schema, the exporter's
marker node and the graph verifier are derived from it (``plugins/derive/``).

Shapes are tuples of symbols (docs/notation.md). A dimension is a symbol (``"H"``) or a product of
symbols (``"K*D"``); a symbol means the same number wherever it stands in one spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from stormrt.errors import InputError

DOMAIN = "stormrt"
"""ONNX domain, PyTorch namespace and TensorRT plugin namespace of every operator."""
DOMAIN_VERSION = 1

DType = Literal["float32", "float16", "int32"]
Dim = TypeVar("Dim")
"""An ``int``, or PyTorch's ``SymInt`` while a graph is traced."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an operator."""

    name: str
    shape: tuple[str, ...]
    """Symbols, or products of symbols."""
    dtype: DType | Literal["T"]
    """A fixed type, or ``"T"``: the operator's I/O type, the same for every tensor marked so."""
    doc: str
    """What it means, in one line."""


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """The contract of one operator.

    ``constants`` fixes symbols (``K = 4`` scan directions). Every custom node carries the
    attributes ``plugin_version`` and ``plugin_namespace``, which TensorRT's parser uses to find
    the creator (10.3 reads only the attribute, 10.10 and later the domain too).
    """

    name: str
    """ONNX ``op_type`` and TensorRT plugin name."""
    torch_name: str
    """Name under ``torch.ops.stormrt``."""
    version: str
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    io_dtypes: tuple[DType, ...] = ("float32", "float16")
    """What ``"T"`` may be."""
    constants: tuple[tuple[str, int], ...] = ()

    @property
    def qualified_name(self) -> str:
        """``stormrt::selective_scan_2d``: the name of the PyTorch operator."""
        return f"{DOMAIN}::{self.torch_name}"

    def attributes(self) -> dict[str, str]:
        """Attributes that every node of this operator carries."""
        return {"plugin_version": self.version, "plugin_namespace": DOMAIN}

    def bind(self, shapes: Sequence[Sequence[Dim]]) -> dict[str, Dim | int]:
        """Solve the symbols from the inputs' shapes and check that they agree.

        Args:
            shapes: One shape an input, in the order of ``inputs``.

        Returns:
            Symbol to dimension, constants included.

        Raises:
            InputError: A wrong count of inputs, a wrong rank, or dimensions that disagree.
        """
        if len(shapes) != len(self.inputs):
            raise InputError(
                f"{self.name}: wrong number of inputs",
                got=str(len(shapes)),
                expected=f"{len(self.inputs)}: {', '.join(t.name for t in self.inputs)}",
            )
        bound: dict[str, Dim | int] = dict(self.constants)
        pending: list[tuple[TensorSpec, int, str, Dim]] = []
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise InputError(
                    f"{self.name}: input {tensor.name!r} has the wrong rank",
                    got=str(tuple(shape)),
                    expected=f"[{', '.join(tensor.shape)}]",
                )
            for axis, (symbol, size) in enumerate(zip(tensor.shape, shape, strict=True)):
                if "*" not in symbol and symbol not in bound:
                    bound[symbol] = size
                else:
                    pending.append((tensor, axis, symbol, size))
        # Products are solved once every plain symbol is known: with K fixed, "K*N" gives N.
        for tensor, axis, symbol, size in pending:
            self._check_or_solve(bound, tensor, axis, symbol, size)
        return bound

    def _check_or_solve(
        self,
        bound: dict[str, Dim | int],
        tensor: TensorSpec,
        axis: int,
        symbol: str,
        size: Dim,
    ) -> None:
        known: Dim | int = 1
        unknown: list[str] = []
        for factor in symbol.split("*"):
            if factor in bound:
                known = known * bound[factor]  # type: ignore[operator]  # int or SymInt: both multiply
            else:
                unknown.append(factor)
        if not unknown and size == known:
            return
        if len(unknown) == 1 and size % known == 0:  # type: ignore[operator]  # as above
            bound[unknown[0]] = size // known  # type: ignore[operator]  # as above
            return
        raise InputError(
            f"{self.name}: input {tensor.name!r} does not fit the others",
            where=f"axis {axis}, {symbol}",
            got=str(size),
            expected=f"{symbol} = {known}" if not unknown else f"a multiple of {known}",
        )

    def output_shapes(self, bound: Mapping[str, Dim | int]) -> list[list[Dim | int]]:
        """Shapes of the outputs for the symbols that ``bind`` solved."""
        return [[bound[symbol] for symbol in tensor.shape] for tensor in self.outputs]
