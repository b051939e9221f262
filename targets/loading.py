# SPDX-License-Identifier: Apache-2.0
"""Find recipes, read them and turn every mistake in one into a message that names its key."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError

from stormrt.errors import InputError
from stormrt.reading import read_small
from stormrt.targets.schema import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # JetPack 6 has Python 3.10, whose library cannot read TOML.

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

    from pydantic_core import ErrorDetails

Table = dict[str, Any]
"""A TOML table as read: its values are checked only by the schema."""


def _folder() -> Traversable:
    return resources.files("stormrt.targets")


def list_targets() -> tuple[str, ...]:
    """Return the ids of the packaged recipes, in alphabetical order.

    Example:
        >>> "t4" in list_targets()
        True
    """
    names = (entry.name for entry in _folder().iterdir())
    return tuple(
        sorted(
            name.removesuffix(".toml")
            for name in names
            if name.endswith(".toml") and not name.startswith("_")
        )
    )


def load_target(name_or_path: str | Path) -> Target:
    """Read one recipe and check it.

    Args:
        name_or_path: The id of a packaged target (``t4``), or the path of a user's recipe, which
            ends in ``.toml``.

    Returns:
        The recipe with its base (``extends``) already merged in.

    Raises:
        InputError: No such target or file, broken TOML, or a recipe that breaks the schema. The
            message names the file and the key.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(text)
        try:
            content = read_small(path).decode("utf-8")
        except OSError as error:
            raise InputError(
                "the target recipe cannot be read", where=text, got=error.strerror or str(error)
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                "the target recipe is not UTF-8 text", where=text, got=error.reason
            ) from error
        return _resolve(_read(content, text), text)

    known = list_targets()
    if text not in known:
        nearest = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}; " if nearest else ""
        raise InputError(
            f"there is no target {text!r}",
            got=text,
            expected="one of " + ", ".join(known),
            fix=f"{hint}a recipe of your own is given by a path that ends in .toml",
        )
    name = f"{text}.toml"
    target = _resolve(_read((_folder() / name).read_text(encoding="utf-8"), name), name)
    if target.id != text:
        # Manifests and folders are named by the id, users find the file by its name.
        raise InputError(
            "a packaged recipe's id is not its file's name",
            where=f"{name}: id",
            got=target.id,
            expected=text,
        )
    return target


def parse_target(data: Mapping[str, object], *, origin: str) -> Target:
    """Check a recipe that is already merged, such as the copy in a bundle.

    Args:
        data: The recipe's tables, as `dump_target` makes them.
        origin: Where the data came from; error messages begin with it.

    Raises:
        InputError: The recipe breaks the schema.
    """
    try:
        return Target.model_validate(data)
    except ValidationError as error:
        raise _recipe_error(error, origin) from None


def dump_target(target: Target) -> dict[str, object]:
    """Return the merged recipe as plain JSON values, for bundles, manifests and digests."""
    return target.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read(content: str, origin: str) -> Table:
    try:
        return tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # a number too long, arrays too deep
        raise InputError(
            "the target recipe is not valid TOML", where=origin, got=str(error)
        ) from error


def _resolve(table: Table, origin: str) -> Target:
    """Merge the recipe's base into it, at most one level deep, and check the whole."""
    if "extends" in table:
        table = dict(table)
        table = _merge(_base(table.pop("extends"), origin), table)
    return parse_target(table, origin=origin)


def _base(name: object, origin: str) -> Table:
    bases = sorted(
        entry.name[1 : -len(".toml")]
        for entry in _folder().iterdir()
        if entry.name.startswith("_") and entry.name.endswith(".toml")
    )
    if name not in bases:
        raise InputError(
            "the recipe extends a base that does not exist",
            where=f"{origin}: extends",
            got=repr(name),
            expected="one of " + ", ".join(bases),
        )
    file = f"_{name}.toml"
    table = _read((_folder() / file).read_text(encoding="utf-8"), file)
    if "extends" in table:
        raise InputError(
            "a base may not extend another base: a recipe is read in two files at most",
            where=f"{file}: extends",
            got=repr(table["extends"]),
        )
    return table


def _merge(base: Table, own: Table) -> Table:
    """Lay `own` over `base`: tables key by key, everything else (arrays too) as a whole."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = (
            _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged


def _recipe_error(error: ValidationError, origin: str) -> InputError:
    problems = [_problem(details) for details in error.errors(include_url=False)]
    if len(problems) == 1:
        key, message = problems[0]
        return InputError(
            "the target recipe is not valid",
            where=f"{origin}: {key}" if key else origin,
            got=message,
        )
    listed = "".join(f"\n    {key}: {message}" for key, message in problems)
    return InputError(
        f"the target recipe is not valid: {len(problems)} problems", where=origin, got=listed
    )


def _problem(details: ErrorDetails) -> tuple[str, str]:
    """Say one pydantic error as (key path, what is wrong with it)."""
    key = ".".join(str(part) for part in details["loc"])
    kind = details["type"]
    if kind == "missing":
        return key, "the key is missing"
    if kind == "extra_forbidden":
        allowed = _allowed_keys(details["loc"][:-1])
        nearest = difflib.get_close_matches(str(details["loc"][-1]), allowed, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected {', '.join(allowed)}"
        return key, f"unknown key; {hint}"
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        path, colon, rest = message.partition(": ")
        if colon and " " not in path:
            # A check over several keys knows better than pydantic which one to blame.
            return (f"{key}.{path}" if key else path), rest
        return key, message
    message = details["msg"]
    given = reprlib.repr(details["input"])  # shortened: the input of a table can be a page
    return key, f"{given}; {message[0].lower()}{message[1:]}"


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the table at `location` may have."""
    model: type[BaseModel] | None = Target
    for part in location:
        if isinstance(part, int):
            continue  # An entry of an array of tables: its type was reached by the array's name.
        model = _child(cast("type[BaseModel]", model), part)
        if model is None:
            return []
    assert model is not None
    return [field.alias or name for name, field in model.model_fields.items()]


def _child(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return _model_in(field.annotation)
    return None


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the first model that a type mentions: X, X | None or tuple[X, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
