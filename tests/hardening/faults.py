# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, each fault made for real and met through the command line.

``test_faults.py`` tries every one; ``render_faults.py`` writes docs/faults.md from them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stormrt.errors import EXIT_ENVIRONMENT, EXIT_INPUT, EXIT_OK, EXIT_VERDICT
from stormrt.pipeline.probe import installed_version
from tests.hardening.mutations import DEEP
from tests.hardening.world import ORIN, T4, World
from tests.pipeline.support import CLASSES, GATED, SMALL

HAS_RTX = installed_version("tensorrt-rtx") is not None

Make = Callable[[World], list[object]]
"""Makes the fault and returns the arguments of ``stormrt``."""


@dataclass(frozen=True)
class Fault:
    """One fault."""

    name: str
    part: str
    """Heading in the table."""
    make: Make
    words: tuple[str, ...]
    """What the message must say."""
    code: int = EXIT_INPUT
    note: str = ""
    """How it was made, where the name does not say so."""
    needs_rtx: bool = False


FAULTS: list[Fault] = []
_part = ""


def _fault(name: str, *words: str, **options: Any) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        FAULTS.append(Fault(name, _part, make, words, **options))
        return make

    return add


def _option(name: str, *words: str, **changes: object) -> None:
    """A bad option of ``stormrt build``."""
    FAULTS.append(Fault(name, _part, lambda w: w.options(**changes), words))


_part = "Options"
_option("an unknown model", "unknown model", "did you mean", model="vmamba_tinny")
_option("an unknown target", "no target 't5'", "did you mean 't4'", target="t5")
_option("a precision that the target lacks", "no precision 'int3'", precision="int3")
_option("a runtime that the target lacks", "no runtime 'tensorrt_rtx'", runtime="tensorrt_rtx")
_option("a malformed `--storm`", "not a number", "most", storm="keep=most")
_option("an unknown key in `--storm`", "was not understood", storm="keep=0.5,hosts=x")
_option("a plan that no model can have", "blocks 0 to 0", storm="keep=0.5,stage=0,block=9")
_option("a budget that no plan fits", "no plan costs as little", storm="flops=0.001")
_option("a malformed `--size`", "image size was not understood", "large", size="large")
_option("an image size below 32 pixels", "too small", "17x17", size="17x17")
_option("a batch of 0", "batch is too small", batch=0)
_option("a `--batch` that is no number", "--batch", batch="two")
_option("an unknown stage", "no such stage", "compile", **{"from": "compile"})
_option("INT8 without a calibration", "INT8 needs a calibration", precision="int8")


@_fault("neither model nor target", "--model and --target are needed")
def _(_w: World) -> list[object]:
    return ["build"]


@_fault("a path that is too long", "File name too long", note="5,000 characters")
def _(w: World) -> list[object]:
    return w.options(checkpoint="x" * 5_000)


_part = "Recipes and plans"


@_fault("an unknown key in a recipe", "sm_kount", "unknown key", "did you mean 'sm_count'")
def _(w: World) -> list[object]:
    recipe = w.recipe("sm_count = 40", "sm_count = 40\nsm_kount = 1")
    return w.options(target=recipe)


@_fault("a recipe that is no TOML", "not valid TOML")
def _(w: World) -> list[object]:
    return w.options(target=w.recipe("schema = 1", "schema = 1 ="))


@_fault("a recipe of a newer schema", "schema")
def _(w: World) -> list[object]:
    return w.options(target=w.recipe("schema = 1", "schema = 2"))


@_fault("a recipe for a GPU that the runtime lacks", "builds nothing for SM 7.0", needs_rtx=True)
def _(w: World) -> list[object]:
    return w.options(out=w.with_engine(), target=w.recipe("sm = 75", "sm = 70"))


@_fault("a plan file nested 20,000 deep", "plan could not be read", "nested too deeply")
def _(w: World) -> list[object]:
    return w.options(storm=w.write("plan.json", "[" * DEEP))


@_fault("a plan file without an end", "larger than 64 MiB", note="/dev/zero")
def _(w: World) -> list[object]:
    return w.options(storm="/dev/zero")


_part = "Checkpoints"


@_fault("a checkpoint that is not there", "checkpoint does not exist")
def _(w: World) -> list[object]:
    return w.options(checkpoint=w.new("none.pth"))


@_fault("a checkpoint of another model", f"is not of {SMALL}", "no known variant fits")
def _(w: World) -> list[object]:
    return w.options(checkpoint=w.checkpoint(lambda s: s.pop("classifier.norm.weight")))


@_fault("a checkpoint of another number of classes", "with 9 classes", f"{CLASSES} classes")
def _(w: World) -> list[object]:
    return w.options(checkpoint=w.checkpoint(), classes=9)


@_fault("a checkpoint that was cut off", "cut off, damaged")
def _(w: World) -> list[object]:
    whole = w.checkpoint().read_bytes()
    return w.options(checkpoint=w.write("weights.pth", whole[: len(whole) // 2]))


@_fault("a checkpoint that holds code", "no pickled objects")
def _(w: World) -> list[object]:
    import torch

    path = w.new("weights.pth")
    torch.save({"model": print}, path)
    return w.options(checkpoint=path)


@_fault("a checkpoint that unpacks to 3 GiB", "packed, and larger than the file")
def _(w: World) -> list[object]:
    from tests.hardening.mutations import zip_bomb

    return w.options(checkpoint=w.write("weights.pth", zip_bomb("a/data/0", b"", 3 << 30, {})))


@_fault("a checkpoint with NaN", "outputs are not finite")
def _(w: World) -> list[object]:
    def spoil(state: dict[str, Any]) -> None:
        state["classifier.head.weight"] = state["classifier.head.weight"] * float("nan")

    return w.options(checkpoint=w.checkpoint(spoil))


@_fault("a checkpoint with complex numbers", "tensors that are no weights", "complex")
def _(w: World) -> list[object]:
    def spoil(state: dict[str, Any]) -> None:
        state["classifier.head.weight"] = state["classifier.head.weight"] * 1j

    return w.options(checkpoint=w.checkpoint(spoil))


@_fault("a model card of other weights", "class names beside the checkpoint are of other weights")
def _(w: World) -> list[object]:
    path = w.checkpoint()
    path.with_suffix(".json").write_text('{"classes": ["a", "b"], "sha256": "0"}')
    data = w.write("data.npz", _npz(["a", "b"], [0, 1]))
    return w.evaluate(data, checkpoint=path)


_part = "Photographs and data"


@_fault("photographs that are not there", "photographs do not exist")
def _(w: World) -> list[object]:
    return w.options(photos=w.new("none"))


@_fault("a photograph that was cut off", "photograph could not be read", "coffee.png")
def _(w: World) -> list[object]:
    whole = (w.photographs / "coffee.png").read_bytes()
    return w.options(photos=w.write("coffee.png", whole[: len(whole) // 2]))


@_fault("a photograph that is a text", "photograph could not be read")
def _(w: World) -> list[object]:
    return w.options(photos=w.write("z.jpg", "not a photograph"))


@_fault("a photograph of 169 million pixels", "pixels are more than", note="a PNG of 21 KB")
def _(w: World) -> list[object]:
    from tests.hardening.corpus import png

    return w.options(photos=w.write("bomb.png", png(13_000, 13_000, bits=1)))


@_fault("a photograph of one line", "too long and thin", note="100,000 x 1 pixels")
def _(w: World) -> list[object]:
    from tests.hardening.corpus import png

    return w.options(photos=w.write("line.png", png(100_000, 1)))


@_fault("data that are not there", "data do not exist")
def _(w: World) -> list[object]:
    return w.evaluate(w.new("none"))


@_fault("a folder without subfolders as data", "no subfolders")
def _(w: World) -> list[object]:
    return w.evaluate(w.photographs)


@_fault("an npz of another layout", "the data lack")
def _(w: World) -> list[object]:
    import numpy as np

    file = io.BytesIO()
    np.savez(file, images=np.zeros(3))
    return w.evaluate(w.write("data.npz", file.getvalue()))


@_fault("labels that are no class", "a label is no class", "from 0 to 5")
def _(w: World) -> list[object]:
    return w.evaluate(w.write("data.npz", _npz(["a", "b"], [0, 5])))


@_fault("an npz with pickled objects", "the data could not be read")
def _(w: World) -> list[object]:
    return w.evaluate(w.write("data.npz", _npz([print], [0, 0])))


@_fault("an npz that claims 3 GiB", "another size than its header says")
def _(w: World) -> list[object]:
    from tests.hardening.corpus import _npz_bombs

    return w.evaluate(w.write("data.npz", _npz_bombs()[0]))


@_fault("data of another number of classes", "3 classes and the model has 2")
def _(w: World) -> list[object]:
    return w.evaluate(w.write("data.npz", _npz(["a", "b", "c"], [0, 1])))


@_fault("images smaller than the input", "never enlarged")
def _(w: World) -> list[object]:
    return w.evaluate(w.write("data.npz", _npz(["a", "b"], [0, 1])), size=64)


def _npz(classes: list[Any], labels: list[int]) -> bytes:
    """Two images of 32 x 32 pixels."""
    import numpy as np

    from tests.hardening.corpus import png

    image = png(32, 32)
    arrays = {
        "test_images": np.frombuffer(image * 2, np.uint8),
        "test_offsets": np.array([0, len(image), 2 * len(image)]),
        "test_labels": np.array(labels),
        "classes": np.array(classes),
    }
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


_part = "Calibration"


@_fault("a table of another model", "of another model", GATED)
def _(w: World) -> list[object]:
    return w.options(out=w.bundle(), precision="int8", calibration=w.table(name=GATED))


@_fault("a table of another STORM plan", "of another STORM plan", "dense")
def _(w: World) -> list[object]:
    table = w.table(plan={"reductions": []})
    return w.options(out=w.bundle(), precision="int8", calibration=table)


@_fault("a table of other weights", "of another checkpoint")
def _(w: World) -> list[object]:
    return w.options(out=w.bundle(), precision="int8", calibration=w.table(seed=7))


@_fault("a table that is damaged", "calibration table could not be read")
def _(w: World) -> list[object]:
    table = w.write("table.json", "{")
    return w.options(out=w.bundle(), precision="int8", calibration=table)


@_fault("labelled images without INT8", "labelled images are for the gate of INT8")
def _(w: World) -> list[object]:
    return w.options(precision="fp16", labelled=w.photographs)


_part = "Output folders"


@_fault("the output folder is a file", "output folder is a file")
def _(w: World) -> list[object]:
    return w.options(out=w.write("out", "mine"))


@_fault("a read-only folder", "could not write", note="chattr +i, where it is allowed")
def _(w: World) -> list[object]:
    out = w.new("out")
    w.read_only(out)
    return w.options(out=out)


@_fault("a full disk", "No space left on device", note="a tmpfs of 16 KiB, where it is allowed")
def _(w: World) -> list[object]:
    out = w.new("out")
    w.fill_disk(out)
    return w.options(out=out)


@_fault("the folder that it was started in is gone", "is gone")
def _(w: World) -> list[object]:
    gone = w.new("gone")
    gone.mkdir()
    w.stack.callback(os.chdir, Path.cwd())
    os.chdir(gone)
    gone.rmdir()
    return ["doctor"]


@_fault("another build into the same folder", "another stormrt build is writing")
def _(w: World) -> list[object]:
    out = w.new("out")
    w.hold_lock(out)
    return w.options(out=out)


@_fault("a graph in the work folder that was damaged", code=EXIT_OK, note="the stage runs again")
def _(w: World) -> list[object]:
    bundle = w.bundle()
    graph = bundle / ".stormrt" / "native.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    return w.options(out=bundle)


@_fault("a stage record that was damaged", code=EXIT_OK, note="the stage runs again")
def _(w: World) -> list[object]:
    bundle = w.bundle()
    (bundle / ".stormrt" / "lower.json").write_text("[" * DEEP)
    return w.options(out=bundle)


@_fault("`--from` a stage, with no work before it", "has not been run with these options")
def _(w: World) -> list[object]:
    return w.options(**{"from": "lower"})


_part = "Bundles"


@_fault("a folder that is no bundle", "manifest.json could not be read")
def _(w: World) -> list[object]:
    return ["build", w.photographs]


@_fault("a file of a bundle is missing", "file of the bundle is missing", "golden.npz")
def _(w: World) -> list[object]:
    bundle = w.bundle()
    (bundle / "golden.npz").unlink()
    return ["build", bundle]


@_fault("a file of a bundle has changed", "has changed since it was made", "model.onnx")
def _(w: World) -> list[object]:
    bundle = w.bundle()
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    return ["build", bundle]


@_fault("a manifest of a newer schema", "damaged or of another version", "schema_version")
def _(w: World) -> list[object]:
    return ["build", w.edit(w.bundle(), lambda m: m.update(schema_version=2))]


@_fault("a manifest without a field", "damaged or of another version", "precision")
def _(w: World) -> list[object]:
    return ["build", w.edit(w.bundle(), lambda m: m.pop("precision"))]


@_fault("a manifest of a runtime that there is not", "damaged or of another version", "runtime")
def _(w: World) -> list[object]:
    return ["inspect", w.edit(w.bundle(), lambda m: m.update(runtime="tensorrt1"))]


@_fault("a manifest that names a file outside", "is no name of a file in the folder")
def _(w: World) -> list[object]:
    bundle = w.edit(w.bundle(), lambda m: m["files"][0].update(name="../../etc/passwd"))
    return ["validate", bundle]


@_fault("a bundle that the INT8 gate refused", "gate refused")
def _(w: World) -> list[object]:
    return ["build", w.edit(w.bundle(), lambda m: m.update(refused="it is worse"))]


@_fault("a bundle on a machine without the target's GPU", "no SM 8.7", code=EXIT_ENVIRONMENT)
def _(w: World) -> list[object]:
    return ["build", w.bundle()]


@_fault("`--runtime` of another lowering", "no runtime 'tensorrt_rtx'")
def _(w: World) -> list[object]:
    return ["build", w.bundle(), "--runtime", "tensorrt_rtx"]


@_fault("an engine for another GPU", "engine is for another GPU", needs_rtx=True)
def _(w: World) -> list[object]:
    bundle = w.edit(w.with_engine(), lambda m: m["engine"].update(sm=86))
    return ["package", bundle, "--for", "plain", "--out", w.new("out")]


@_fault("an engine that was changed", "has changed since it was made", needs_rtx=True)
def _(w: World) -> list[object]:
    bundle = w.with_engine()
    (bundle / "engine.plan").write_bytes(b"not an engine")
    return ["validate", bundle]


@_fault("a package into a folder with other files", "files that are no package's")
def _(w: World) -> list[object]:
    out = w.write("mine.txt", "mine").parent
    return ["package", w.bundle(), "--for", "triton", "--out", out]


@_fault("too few class names for a package", "not as many class names as outputs")
def _(w: World) -> list[object]:
    labels = w.write("labels.txt", "sea\nsand\n")
    return [*("package", w.bundle(), "--for", "triton", "--out", w.new("o")), "--labels", labels]


_part = "ONNX files"


@_fault("an ONNX file that was cut off", "not an ONNX model, or is damaged")
def _(w: World) -> list[object]:
    whole = (w.bundle() / "model.onnx").read_bytes()
    return ["inspect", w.write("model.onnx", whole[: len(whole) // 3])]


@_fault("an ONNX file whose weights are in /etc/passwd", "keeps its weights in other files")
def _(w: World) -> list[object]:
    import onnx

    model = onnx.load(w.bundle() / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return ["inspect", w.write("model.onnx", model.SerializeToString())]


@_fault("an ONNX file with an operator that is not ours", "custom operators", "NoSuchScan")
def _(w: World) -> list[object]:
    import onnx

    model = onnx.load(w.bundle() / "model.onnx")
    model.graph.node[0].domain, model.graph.node[0].op_type = "stormrt", "NoSuchScan"
    return ["inspect", w.write("model.onnx", model.SerializeToString())]


_part = "Plugins"


@_fault("no nvcc", "nvcc", code=EXIT_ENVIRONMENT, note="a PATH with nothing but g++")
def _(w: World) -> list[object]:
    w.without_programs()
    return ["plugins", "build", "--out", w.new("plugins")]


@_fault("a GPU that nvcc does not compile for", "compiled for no such GPU")
def _(w: World) -> list[object]:
    return ["plugins", "build", "--arch", "35", "--out", w.new("plugins")]


@_fault("a plugin library that is not there", "plugin library does not exist")
def _(w: World) -> list[object]:
    return ["plugins", "check", "--library", w.new("libstormrt_plugins.so")]


@_fault("a plugin library that is a text", code=EXIT_VERDICT, note="its row reads failed")
def _(w: World) -> list[object]:
    return ["plugins", "check", "--library", w.write("libstormrt_plugins.so", "text")]


@_fault("a plugin library of another version", code=EXIT_VERDICT, note="its row reads failed")
def _(w: World) -> list[object]:
    import subprocess

    source = w.write(
        "old.c",
        "int stormrt_abi_version(void) { return 99; } const char *stormrt_build_info(void) "
        '{ return "{}"; } int stormrt_launch(void) { return 1; } '
        "int stormrt_count_tactics(void) { return 1; }",
    )
    library = source.with_name("libstormrt_plugins.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return ["plugins", "check", "--library", library]


@_fault("an operator that is not there", "no operator 'Scan'")
def _(_w: World) -> list[object]:
    return ["plugins", "show", "Scan"]


# The targets that bundles are for; a rename would go unseen in the texts above.
assert (ORIN, T4) == ("orin-nano-8g", "t4")


def selected() -> list[Fault]:
    """The faults that can be made on this machine, in order."""
    return [replace(fault) for fault in FAULTS if HAS_RTX or not fault.needs_rtx]
