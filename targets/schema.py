# SPDX-License-Identifier: Apache-2.0
"""What a target recipe may say: frozen types in which an unknown key is an error."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stormrt.errors import InputError
from stormrt.runtime_name import RuntimeName

Precision = Literal["fp32", "fp16", "int8"]
"""A precision that a graph can be written in: casts for FP16; for INT8 also Q/DQ pairs, with FP16
beside them. It lives in the graph, never in builder flags."""

Lowering = Literal["plugin", "native"]
"""How custom ops reach the engine: as plugin nodes, or inlined as standard ONNX ops."""

SCHEMA_VERSION = 1
"""The version of the recipe format that this release reads."""


_Item = TypeVar("_Item")


def _check_specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is not a version range such as '>=10.3,<12'") from None
    if not text.strip():
        # SpecifierSet("") is valid and allows everything: a forgotten range would go unseen.
        raise ValueError("an empty version range; write one such as '>=10.3,<12'")
    return text


def _check_version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion:
        raise ValueError(f"{text!r} is not a version such as '6.2'") from None
    return text


def _check_not_empty(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    # Not Field(min_length=1): pydantic would then report an array whose only entry is wrong as
    # empty too, a second message for one mistake.
    if not items:
        raise ValueError("an empty array; expected at least 1 entry")
    return items


Specifier = Annotated[str, AfterValidator(_check_specifier)]
"""A range of versions in the notation of Python packages, e.g. ``>=10.3,<12``."""

VersionText = Annotated[str, AfterValidator(_check_version)]
"""One version, e.g. ``6.2``."""

Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Recipe(BaseModel):
    # strict: "75" is not 75 and 1 is not true. A recipe is written by hand, and what it says
    # should be what it means. (Tuples are exempt below: TOML has arrays, not tuples.)
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Device(_Recipe):
    """The board's hardware."""

    gpu: Text
    """The GPU's name, for people."""
    sm: Annotated[int, Field(ge=50, le=999)]
    """CUDA compute capability times ten: 75 is 7.5."""
    sm_count: Annotated[int, Field(gt=0)]
    """How many streaming multiprocessors the GPU has."""
    arch: Literal["x86_64", "aarch64"]
    """The CPU's instruction set, as ``uname -m`` names it."""
    memory_mib: Annotated[int, Field(gt=0)]
    """Memory that the GPU can reach, in MiB (nominal; a part is taken by firmware or ECC)."""
    memory_shared: bool
    """Whether that memory is the CPU's too, as on every Jetson."""
    bandwidth_gb_s: Annotated[float, Field(gt=0)]
    """Peak memory bandwidth, in GB/s (10^9 bytes): theoretical, not measured."""


class JetPack(_Recipe):
    """One JetPack release that the board can run, and the TensorRT that may run on it."""

    version: VersionText
    """The release, e.g. ``6.2``."""
    tensorrt: Specifier
    """The TensorRT versions that this release can carry."""


class Software(_Recipe):
    """What is installed on the board."""

    jetpack: Annotated[tuple[JetPack, ...], Field(strict=False)]
    """JetPack releases that are supported; empty where the board is no Jetson."""


class Tolerance(_Recipe):
    """How far an engine's outputs may be from those of the same model in FP32 PyTorch."""

    rel_l2: Annotated[float, Field(gt=0)]
    """Most relative L2 error allowed: ||engine - reference|| / ||reference||."""
    cosine: Fraction
    """Least cosine similarity allowed."""
    argmax_agreement: Fraction
    """Least fraction of inputs whose argmax must agree."""
    selection_agreement: Fraction
    """Least fraction of the lines kept by STORM that FP32 PyTorch must keep too."""


class Tolerances(_Recipe):
    """One tolerance for each precision that the target builds."""

    fp32: Tolerance | None = None
    """For graphs whose values are all FP32."""
    fp16: Tolerance | None = None
    """For graphs cast to FP16."""
    int8: Tolerance | None = None
    """For graphs with Q/DQ pairs."""


class RuntimeRecipe(_Recipe):
    """One package that builds engines for the target."""

    name: RuntimeName
    """The Python package."""
    version: Specifier
    """The versions of it that are supported."""
    lowering: Lowering
    """How custom ops reach it."""
    builds_without_gpu: bool = False
    """Whether it builds on a machine that has not the target's GPU."""
    tolerance: Tolerances = Tolerances()
    """Tolerances that differ from the target's for this runtime alone."""

    @model_validator(mode="after")
    def _check_combination(self) -> RuntimeRecipe:
        if self.name == "tensorrt" and self.builds_without_gpu:
            raise ValueError("builds_without_gpu: tensorrt builds only on the target's own GPU")
        if self.name == "tensorrt_rtx" and self.lowering == "plugin":
            raise ValueError("lowering: tensorrt_rtx runs no plugins; expected 'native'")
        return self


class Build(_Recipe):
    """How the engine is built."""

    precisions: Annotated[
        tuple[Precision, ...], Field(strict=False), AfterValidator(_check_not_empty)
    ]
    """Precisions that the target supports."""
    default_precision: Precision
    """The one taken when the user names none."""
    workspace_mib: Annotated[int, Field(gt=0)]
    """Most scratch memory that a layer of the engine may use, in MiB."""
    builder_optimization_level: Annotated[int, Field(ge=0, le=5)]
    """How long TensorRT looks for fast kernels, from 0 (shortest) to 5 (longest)."""


class Quantization(_Recipe):
    """What INT8 means for the target, beside the default policy (``pipeline.quantize.policy``)."""

    keep_float: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Regular expressions on node names: what they find stays in floating point."""
    most_top1_loss: Fraction
    """Most that INT8's top-1 (0 to 1) may be below FP16's, where there are labelled images."""
    most_tensor_error: Fraction = 0.5
    """Most that rounding may change one tensor by itself (relative L2): more is a bad scale, even
    where other layers hide it."""


class Target(_Recipe):
    """A board: what it is, what runs on it, how its engine is built and judged."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of the recipe format."""
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    """The name that ``--target`` takes: ``<family>-<board>-<memory>``."""
    description: Text
    """One line, for people."""
    device: Device
    software: Software
    runtimes: Annotated[
        tuple[RuntimeRecipe, ...],
        Field(alias="runtime", strict=False),
        AfterValidator(_check_not_empty),
    ]
    """Packages that build engines for the target, the preferred one first."""
    build: Build
    tolerance: Tolerances
    quantization: Quantization | None = None
    """Needed where ``build.precisions`` has int8."""

    @model_validator(mode="after")
    def _check_across_tables(self) -> Target:
        # Messages begin with the key path: the loader shows them as if the key itself had failed.
        most = self.device.memory_mib // 4
        if self.build.workspace_mib > most:
            raise ValueError(
                f"build.workspace_mib: {self.build.workspace_mib} MiB is more than a quarter of "
                f"device.memory_mib ({self.device.memory_mib} MiB); expected at most {most}"
            )
        precisions = self.build.precisions
        if len(set(precisions)) != len(precisions):
            raise ValueError("build.precisions: a precision is named twice")
        if self.build.default_precision not in precisions:
            raise ValueError(
                f"build.default_precision: {self.build.default_precision!r} is not in "
                f"build.precisions ({', '.join(precisions)})"
            )
        for precision in precisions:
            if getattr(self.tolerance, precision) is None:
                raise ValueError(
                    f"tolerance.{precision}: missing, though build.precisions has {precision!r}"
                )
        if "int8" in precisions and self.quantization is None:
            raise ValueError("quantization: missing, though build.precisions has 'int8'")
        for index, recipe in enumerate(self.runtimes):
            if recipe.name in [other.name for other in self.runtimes[:index]]:
                raise ValueError(f"runtime.{index}.name: {recipe.name!r} is declared twice")
            if recipe.name == "tensorrt_rtx" and self.device.sm == 87:
                raise ValueError(
                    f"runtime.{index}.name: tensorrt_rtx has no SM 8.7 (Orin); use tensorrt"
                )
        return self

    @property
    def compute_capability(self) -> str:
        """The GPU's compute capability as NVIDIA writes it, e.g. ``7.5``."""
        return f"{self.device.sm // 10}.{self.device.sm % 10}"

    @property
    def runtime_names(self) -> tuple[RuntimeName, ...]:
        """Names of the runtimes, the preferred one first."""
        return tuple(recipe.name for recipe in self.runtimes)

    def runtime(self, name: str) -> RuntimeRecipe:
        """Return the recipe of one runtime.

        Args:
            name: ``tensorrt`` or ``tensorrt_rtx``.

        Raises:
            InputError: The target has no such runtime.
        """
        for recipe in self.runtimes:
            if recipe.name == name:
                return recipe
        raise InputError(
            f"target {self.id} has no runtime {name!r}",
            got=name,
            expected=" or ".join(self.runtime_names),
            fix=f"build with --runtime {self.runtime_names[0]}",
        )

    def tolerance_for(self, precision: str, runtime: str) -> Tolerance:
        """Return the thresholds for one precision on one runtime.

        The runtime's own ``[runtime.tolerance.<precision>]`` is taken where there is one, the
        target's ``[tolerance.<precision>]`` otherwise.

        Args:
            precision: ``fp32``, ``fp16`` or ``int8``.
            runtime: ``tensorrt`` or ``tensorrt_rtx``.

        Raises:
            InputError: The target has no such runtime, or no tolerance for the precision.
        """
        own = self.runtime(runtime).tolerance
        if precision in get_args(Precision):
            for table in (own, self.tolerance):
                found: Tolerance | None = getattr(table, precision)
                if found is not None:
                    return found
        raise InputError(
            f"target {self.id} has no tolerance for {precision!r}",
            where=f"tolerance.{precision}",
            got=precision,
            expected=" or ".join(self.build.precisions),
        )
