"""Configuration: frozen dataclasses in, frozen dataclasses out, and every mistake named at once.

Each class of the library has its config right above it, declared with `@dataclass(frozen=True, config=STRICT)` from
pydantic. YAML and dotted overrides are read by OmegaConf; pydantic checks types, ranges and unknown keys.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from yaml import YAMLError

from channelvq.errors import InputError, did_you_mean
from channelvq.files import write_text_atomically
from channelvq.registry import Registry, imported

T = TypeVar("T")
# Of every config of the library. No setting has a meaning at infinity: what is without a limit is None or 0.
# What OmegaConf raises for texts that are none of its own, the last three for `false` and for keys such as "[".
UNREADABLE = (
    OmegaConfBaseException, YAMLError, TypeError, ValueError, RecursionError, AssertionError, IndexError, KeyError,
)  # fmt: skip
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# Far above any use, and little enough memory for what is computed and not in a file of weights.
CodebookSize = Annotated[int, Field(gt=0, le=2**22)]
ScalarCodebookSize = Annotated[int, Field(gt=0, le=2**18)]  # whose codes are all computed when it is built
ImageSize = Annotated[int, Field(gt=0, le=2**14)]
SHOWN = 20  # mistakes of one config
UNKNOWN = "unexpected_keyword_argument"  # pydantic's name for a setting that there is not


def from_dict(cls: type[T], data: dict[str, Any], *, where: str = "config", listed: str = "") -> T:
    """Build config class `cls` from plain data; raises one InputError that lists every unknown key and bad value.

    listed: a last line of that error where a key is unknown: what lists the known ones.
    """
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    unknown = any(detail["type"] == UNKNOWN for detail in details)
    known = _known(cls, data, details) if unknown else []
    lines = [_explain(detail, known) for detail in details]
    shown = (
        lines[:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN) + [listed] * bool(unknown and listed)
    )
    raise InputError(f"{where}: {len(lines)} setting(s) cannot be used:\n  " + "\n  ".join(shown))


def _known(cls: type[Any], data: dict[str, Any], details: Sequence[Any]) -> list[str]:
    """Dotted names of what can be set: those that are missing, and those of the data without what is wrong in it."""
    missing = [_key(detail) for detail in details if detail["type"] == "missing"]
    right = deepcopy(data)
    for detail in details:
        _remove(right, detail["loc"][:-1] if detail["type"] == "missing" else detail["loc"])
    try:
        return [*missing, *_dotted(to_dict(TypeAdapter(cls).validate_python(right)))]
    except ValidationError:
        return missing


def _remove(data: Any, place: Sequence[Any]) -> None:
    for part in place[:-1]:
        data = data.get(part) if isinstance(data, dict) else None
    if isinstance(data, dict) and place:
        data.pop(place[-1], None)


def _dotted(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")


def _key(detail: Any) -> str:
    return ".".join(map(str, detail["loc"])) or "(top level)"


def _explain(detail: Any, known: Sequence[str]) -> str:
    key = _key(detail)
    if detail["type"] == UNKNOWN:
        group, dot, name = key.rpartition(".")
        parts = [other.rpartition(".") for other in known]
        elsewhere = [above + "." for above, _, other in parts if other == name and above]  # steps=60 for train.steps
        if elsewhere:
            return f"{key}: there is no such setting" + did_you_mean(name, [name], elsewhere[0])
        beside = [other for above, _, other in parts if above == group]
        return f"{key}: there is no such setting" + did_you_mean(name, beside, group + dot)
    given = detail["input"]
    shown = "" if isinstance(given, dict) else f" (given {given!r:.80})"
    return f"{key}: {detail['msg']}{shown}"


def of_kind(registry: Registry[Any], default: str | None = None) -> PlainValidator:
    """For a field of settings that name their `kind` (or mean `default`), read as what is registered by that name.

    Annotate with it: `quantizer: Annotated[QuantizerConfig, of_kind(QUANTIZERS, default="plain")]`.
    """

    def read(given: Any) -> Any:
        kind = given.get("kind", default) if isinstance(given, dict) else getattr(given, "kind", None)
        if isinstance(kind, str) and kind in registry:
            return TypeAdapter(registry[kind]).validate_python(given)
        *others, last = registry.names()
        known = f"{', '.join(others)} or {last}" if others else last
        expected = PydanticCustomError("kind", "expected settings whose kind is {known}", {"known": known})
        if not isinstance(given, dict):
            raise expected
        # Raised so, it is told with the key of the kind, and what was given.
        raise ValidationError.from_exception_data("kind", [{"type": expected, "loc": ("kind",), "input": kind}])

    return PlainValidator(read)


def when_given(place: str) -> PlainValidator:
    """For a field of settings that is None or settings of the class at `place`, imported when there are some.

    Annotate with it: `adversarial: Annotated[AdversarialConfig | None, when_given("...:AdversarialConfig")] = None`,
    the class itself imported for type checkers alone.
    """

    def read(given: Any) -> Any:
        return None if given is None else TypeAdapter(imported(place)).validate_python(given)

    return PlainValidator(read)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain data, defaults included, ready for YAML or JSON."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def digest(config: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the resolved config: equal settings, equal digest.

    A setting that is None counts as absent, so an option that is added later leaves the digests of before.
    """
    settings = _without_none(to_dict(config))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return [_without_none(value) for value in data] if isinstance(data, list) else data


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the library, such as "small/smoke"."""
    root = resources.files("channelvq") / "recipes"
    with resources.as_file(root) as folder:
        return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def read_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """The plain data of a recipe, by name ("small/smoke") or by the path of a YAML file.

    A recipe may name another one under `base` (a path is relative to the recipe's own folder): the other's settings are
    read first and then overridden.
    """
    return _read_recipe(name_or_path, ())


def _read_recipe(name_or_path: str | Path, above: tuple[str, ...]) -> dict[str, Any]:
    name = str(name_or_path)
    if name in above:
        raise InputError(f"recipe {name!r} is its own base: {' -> '.join((*above, name))}")
    try:
        data = OmegaConf.to_container(OmegaConf.create(recipe_text(name)), resolve=True)
    except InputError:  # there is no such recipe
        raise
    except UNREADABLE as error:
        raise InputError(f"recipe {name!r} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"recipe {name!r}: expected a mapping of settings, got {type(data).__name__}")
    settings = {str(key): value for key, value in data.items()}
    if not settings:
        raise InputError(
            f"recipe {name!r} is empty: expected settings such as data, model and train, or `base: NAME` of a "
            f"recipe to build on ({', '.join(recipe_names()[:3])}, ...)"
        )
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise InputError(f"recipe {name!r}: base is the name or the path of a recipe, got {base!r}")
    if _is_path(base):
        base = str(Path(name).parent / base)
    return _merge(_read_recipe(base, (*above, name)), settings, f"recipe {name!r}")


def _is_path(name: str) -> bool:
    return Path(name).suffix in {".yaml", ".yml"}


def recipe_text(name: str) -> str:
    """The YAML of a recipe, by name or path, as it is written."""
    if _is_path(name):
        if not Path(name).is_file():
            raise InputError(f"recipe {name!r}: there is no such file")
        return Path(name).read_text(encoding="utf-8")
    entry = resources.files("channelvq") / "recipes" / f"{name}.yaml"
    if not entry.is_file():
        near = did_you_mean(name, recipe_names())
        raise InputError(
            f"recipe {name!r}: no such recipe (`cvq recipes` lists all), nor a path that ends in .yaml{near}"
        )
    return entry.read_text(encoding="utf-8")


def _merge(below: dict[str, Any], above: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of `above` over those of `below`; raises InputError, beginning with `where`, if they do not fit."""
    if clash := _clash(below, above, ""):
        raise InputError(f"{where}: {clash}")
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(below, above), resolve=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    return {str(key): value for key, value in merged.items()} if isinstance(merged, dict) else {}


def _clash(below: Any, above: Any, key: str) -> str | None:
    """Where settings stand over a list or a list over settings, which OmegaConf refuses without the key."""
    if isinstance(below, dict) and isinstance(above, dict):
        inside = (_clash(below[name], above[name], f"{key}.{name}") for name in below.keys() & above.keys())
        return next((clash for clash in inside if clash), None)
    names = {dict: "settings as key: value", list: "a list"}
    if type(below) in names and type(above) in names and type(below) is not type(above):
        return f"{key.lstrip('.')}: expected {names[type(below)]}, got {above!r:.80}"
    return None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Settings of `data` replaced by dotted overrides such as "model.quantizer.codebook_size=4096"."""
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise InputError(f"override {override!r}: expected key=value, for example train.steps=100")
    for before, override in pairwise(overrides):
        # What a shell makes of urls=train-{0..9}.tar: without this only the last shard would be read.
        if before != override and before.split("=")[0] == override.split("=")[0]:
            raise InputError(
                f"overrides {before!r} and {override!r}: one setting twice; put a value with braces in quotes"
            )
    where = f"overrides {list(overrides)}"
    try:
        above: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except UNREADABLE as error:
        raise InputError(f"{where}: {error}") from None
    return _merge(data, above, where)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two configs as plain data differ, as "dotted.key: old -> new"."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key}: {a} -> {b}")
    return changes


def save(config: Any, path: str | Path) -> None:
    """Write the resolved config as YAML, whole or not at all: a run without its config could not go on."""
    text = OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    write_text_atomically(Path(path), text)
