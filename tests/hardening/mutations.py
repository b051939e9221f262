# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies that damage good files: bytes, JSON, TOML, zip archives."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence

from hypothesis import strategies as st

_PLACES = st.integers(0, 2**24)
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)

DEEP = 20_000
"""Nesting that overflows a parser's stack where it recurses without a limit."""


@st.composite
def damaged(draw: st.DrawFn, bases: Sequence[bytes], most: int = 6) -> bytes:
    """One of some files with a few bytes flipped, cut out, doubled, inserted, or cut off."""
    content = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(0, most))):
        size = max(1, len(content))
        at = draw(_PLACES) % size
        length = 1 + draw(st.integers(0, 64))
        match draw(st.integers(0, 7)):
            case 0:
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                if content:
                    content[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at:at] = draw(st.binary(max_size=16))
            case 5:
                del content[at:]
            case 6:
                number = struct.pack("<Q", draw(st.sampled_from(_NUMBERS)))
                kept = draw(st.sampled_from((1, 2, 4, 8)))
                content[at : at + kept] = number[:kept][:: draw(st.sampled_from((1, -1)))]
            case _:
                other = draw(st.sampled_from(bases))
                start = draw(_PLACES) % max(1, len(other))
                content[at : at + length] = other[start : start + length]
    return bytes(content)


RAW = "@raw@"
"""Marks a text that stands for JSON which `json.dumps` would not write."""

_RAW_JSON = {
    f"{RAW}deep": "[" * DEEP + "]" * DEEP,
    f"{RAW}deep_object": '{"a":' * DEEP + "1" + "}" * DEEP,
    f"{RAW}digits": "9" * 5_000,
    f"{RAW}exponent": "1e999999",
    f"{RAW}surrogate": '"\\ud800"',
    f"{RAW}comment": "/* */",
}

WORDS = (
    "",
    "x",
    "x" * 5_000,
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a\0b",
    "\u202e\N{SNOWMAN}",
    "nan",
    "%s%n",
    "[bold]x[/bold]",
    ".",
    "sha256",
)

SCALARS = st.one_of(
    st.sampled_from((None, True, False, 0, 1, -1, 2, 3, 255, 10**6, 2**31, 2**63, 10**30, 10**400)),
    st.sampled_from((0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"))),
    st.sampled_from((*WORDS, *_RAW_JSON)),
    st.integers(-(2**70), 2**70),
    st.text(max_size=12),
)
_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def _paths(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [at]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:8]):
            found += _paths(inner, (*at, index))
    return found


@st.composite
def damaged_json(draw: st.DrawFn, bases: Sequence[bytes]) -> bytes:
    """A JSON file with some values replaced, removed, added or doubled; or with damaged bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(bases))
    value = json.loads(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        paths = _paths(value)
        path = paths[draw(st.integers(0, len(paths) - 1))]
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(_VALUES)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.integers(0, 5)):
            case 0 if isinstance(parent, dict):
                del parent[path[-1]]
            case 1 if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = draw(_VALUES)
            case 2 if isinstance(parent, list):
                parent += parent * draw(st.sampled_from((1, 50)))
            case _:
                parent[path[-1]] = draw(_VALUES)
    text = json.dumps(value)
    for mark, raw in _RAW_JSON.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode("utf-8", "surrogatepass")


_TOML_VALUES = (
    "1",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "true",
    '"x"',
    '""',
    "[]",
    "[1, [2]]",
    "{}",
    "{a = {b = 1}}",
    "1979-05-27",
    "1979-13-99",
    "25:61:00",
    "0x" + "f" * 400,
    "9" * 5_000,
    "[" * DEEP + "]" * DEEP,
    "[" * DEEP,
    '"\\ud800"',
    "'''",
    '"' + "x" * 100_000 + '"',
    "2" * 30,
)


@st.composite
def damaged_toml(draw: st.DrawFn, bases: Sequence[bytes]) -> bytes:
    """A TOML file with lines removed, doubled, moved, or given other values; or other bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(bases))
    lines = draw(st.sampled_from(bases)).decode().splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(_PLACES) % len(lines) if lines else 0
        line = lines[at] if lines else ""
        match draw(st.integers(0, 4)):
            case 0:
                del lines[at : at + 1]
            case 1:
                lines.insert(at, line)
            case 2:
                lines.append(line)
            case 3:
                lines.insert(at, draw(st.text(max_size=20)))
            case _:
                value = draw(st.one_of(st.sampled_from(_TOML_VALUES), st.text(max_size=6)))
                lines[at : at + 1] = [f"{line.partition('=')[0]}= {value}"]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def rezipped(content: bytes, changes: dict[str, bytes], compression: int) -> bytes:
    """A zip archive with some of its entries replaced, all checksums right."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(made, "w", compression) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, changes.pop(info.filename, None) or old.read(info))
        for name, data in changes.items():
            new.writestr(name, data)
    return made.getvalue()


@st.composite
def damaged_zip(draw: st.DrawFn, bases: Sequence[bytes]) -> bytes:
    """A zip archive damaged inside one entry, whose checksum is right again; or anywhere."""
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(bases))
    base = draw(st.sampled_from([b for b in bases if zipfile.is_zipfile(io.BytesIO(b))]))
    with zipfile.ZipFile(io.BytesIO(base)) as archive:
        names = archive.namelist()
        name = names[draw(st.integers(0, len(names) - 1))]
        entry = archive.read(name)
    compression = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return rezipped(base, {name: draw(damaged([entry]))}, compression)


def zip_bomb(name: str, head: bytes, zeros: int, others: dict[str, bytes]) -> bytes:
    """A small archive, one entry of which is a head and then many zeros.

    Args:
        name: That entry's.
        head: Its first bytes.
        zeros: How many zeros follow; whole blocks of 64 MiB.
        others: Entries beside it.
    """
    block = 1 << 26
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    one = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    last = packer.flush(zlib.Z_FINISH)
    packed = first + one * (zeros // block) + last
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for other, data in others.items():
            archive.writestr(other, data)
        archive.writestr(name, b"")
    content = made.getvalue()
    # The empty entry is last: its headers are put right by hand.
    local = content.rindex(b"PK\x03\x04")
    central = content.rindex(b"PK\x01\x02")
    sizes = struct.pack("<III", 0, len(packed), len(head) + zeros)
    start = local + 30 + len(name)
    header = bytearray(content[local:start])
    header[8:10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    header[14:26] = sizes
    directory = content.index(b"PK\x01\x02")
    entries = bytearray(content[directory:])
    at = central - directory
    entries[at + 10 : at + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    entries[at + 16 : at + 28] = sizes
    end = entries.rindex(b"PK\x05\x06")
    entries[end + 16 : end + 20] = struct.pack("<I", local + len(header) + len(packed))
    return content[:local] + bytes(header) + packed + bytes(entries)
