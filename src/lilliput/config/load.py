"""Reading recipes: TOML files, overrides, and errors in one line."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, overload

from pydantic import BaseModel, ValidationError

from lilliput.config.base import Settings
from lilliput.config.recipe import Recipe
from lilliput.errors import RecipeError

R = TypeVar("R", bound=Settings)
NO_STAGES = ("command", "name", "seed", "stages", "data", "augment", "model")  # tables and values of every run


@overload
def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe: ...
@overload
def load_recipe(path: str | Path, overrides: list[str] | None, kind: type[R]) -> R: ...
def load_recipe(path: str | Path, overrides: list[str] | None = None, kind: type[Settings] = Recipe) -> Settings:
    """Read a recipe file and apply `stage.field=value` overrides (values in TOML syntax; bare words are strings).

    Raises:
        RecipeError: the file is missing or not TOML, or a field is unknown, of the wrong type or out of range.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"recipe {path}: cannot be read ({error.strerror}); give the path of a .toml recipe"
        ) from None
    except (ValueError, RecursionError) as error:  # among them TOMLDecodeError, UnicodeDecodeError, numbers too long
        raise RecipeError(f"recipe {path}: not valid TOML ({error})") from None
    tree.setdefault("name", path.stem)
    return parse_settings(tree, str(path), overrides, kind)


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's tree of plain values; `where` names its source in errors."""
    return parse_settings(tree, where, None, Recipe)


def parse_settings(tree: dict[str, Any], where: str, overrides: list[str] | None, kind: type[R]) -> R:
    """Apply overrides to a tree of plain values, and validate it as a recipe of class `kind`.

    Raises:
        RecipeError: as `load_recipe`, and for an override of a stage that is not run.
    """
    for override in overrides or []:
        _apply_override(tree, override)
    try:
        # Through JSON, because strict validation takes lists for tuples only from JSON.
        text = json.dumps(tree, default=str)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {where}: cannot be read ({str(error)[:100]})") from None
    try:
        recipe = kind.model_validate_json(text)
    except ValidationError as error:
        raise RecipeError(f"recipe {where}: {_one_line(error, kind)}") from None
    _refuse_idle(overrides or [], recipe)
    return recipe


def _refuse_idle(overrides: list[str], recipe: Settings) -> None:
    """Raise if an override is of a stage that is not run: whoever gives it expects that it does something."""
    stages: tuple[str, ...] = getattr(recipe, "stages", ())
    for override in overrides:
        table = override.partition("=")[0].strip().partition(".")[0]
        if table not in (*NO_STAGES, *stages):
            raise RecipeError(
                f"--set {override}: the stage '{table}' is not run; add it by --set stages=, now {list(stages)}"
            )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as stage.field=value, for example train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError is one; numbers may be too long, lists too deep
        value = text.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override}: '{part}' is a value, not a table of settings")
        node = cast("dict[str, Any]", child)
    node[parts[-1]] = value


def _one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    # Of another command's recipe nothing else matters. A misspelt field also makes the right one missing, so unknown
    # fields are told before others.
    errors = sorted(error.errors(), key=lambda one: (one["loc"] != ("command",), one["type"] != "extra_forbidden"))
    first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    place = ".".join(str(part) for part in first["loc"])
    if place == "command":
        return f"it is one of `lil {first['input']}`"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown field '{place}'; allowed: {', '.join(_allowed_fields(first['loc'], kind))}{more}"
    if first["type"] == "value_error":
        return f"{place}: {message}{more}" if place else f"{message}{more}"
    if first["type"] == "missing":
        return f"{place} is missing{more}"
    return f"{place}: {message}, got {first['input']!r}{more}"


def _allowed_fields(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Fields of the settings class in which the unknown field at `location`, of a recipe of class `kind`, stands."""
    settings = kind
    for part in location[:-1]:
        if isinstance(part, int):
            continue  # an element of a list: its class was found under the list's name
        annotation = settings.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation), *(a for b in get_args(annotation) for a in get_args(b))]
        settings = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return sorted(settings.model_fields)
