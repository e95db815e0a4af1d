"""How settings are read: YAML under flags, checked as a whole, every problem reported at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from .errors import ConfigError


class StageConfig:
    """What the settings of every stage share. Subclasses are frozen pydantic dataclasses."""

    STAGE: ClassVar[str]
    POSITIONAL: ClassVar[str | None] = None
    """The field, a list, that takes the words of the command line that belong to no flag."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file; raises :class:`ConfigError` listing every problem."""
        return read_config(path, cls)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, equal after a round trip through YAML."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


C = TypeVar("C", bound=StageConfig)
_BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n")


def read_config(path: str | Path | None, cls: type[C], overrides: Mapping[str, Any] | None = None) -> C:
    """Build a config of class ``cls`` from YAML and overrides.

    Raises :class:`ConfigError` with one line for every problem of the file and the overrides together.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    source = {key: str(path) for key in values} | {key: f"flag {_flag(key)}" for key in overrides or {}}
    values |= overrides or {}
    known = {field.name: field for field in _own_first(cls)}
    problems, wrong = [], set()
    for key in [key for key in values if key not in known]:
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(known)}"
        problems.append(f"{source[key]}: unknown key '{key}'; {hint}")
        del values[key]
    for key, value in list(values.items()):
        if isinstance(value, bool) and known[key].type not in (bool, "bool"):
            problems.append(f"{source[key]}: {key}: got {str(value).lower()}, which is neither a number nor a text")
            del values[key]
            wrong.add(key)
    adapter = TypeAdapter(cls)
    try:
        config = adapter.validate_python(values)
    except ValidationError as error:
        for item in error.errors():
            if item["loc"]:
                key = str(item["loc"][0])
                problems.append(f"{source.get(key, 'defaults')}: {key}: got {item['input']!r}: {item['msg']}")
                wrong.add(key)
        # Pydantic leaves the rules between fields out where a field is wrong: ask again without those fields.
        try:
            adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
        except ValidationError as between:
            rules = between.errors()[0]["msg"].removeprefix("Value error, ").splitlines()
            problems += [f"{path or 'flags'}: {rule}" for rule in rules if wrong.isdisjoint(re.findall(r"\w+", rule))]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _own_first(cls: type[StageConfig]) -> list[dataclasses.Field[Any]]:
    """The fields of a config, a stage's own before those that it shares with others."""
    return sorted(dataclasses.fields(cls), key=lambda field: field.name not in cls.__annotations__)  # type: ignore[arg-type]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{path}: config cannot be read ({error.strerror}); give the path of a YAML file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: config is not UTF-8 text; give the path of a YAML file"]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        reason = getattr(error, "problem", None) or "not YAML"
        raise ConfigError([f"{path}: {line}malformed YAML ({reason}); write one `key: value` a line"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: holds a {type(values).__name__}, expected `key: value` lines"])
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_config(cls: type[C], argv: Sequence[str] | None, *, description: str) -> C:
    """Parse ``--config FILE`` and one flag for every field of ``cls``; flags beat the file.

    Raises :class:`ConfigError` with one line for every problem, an unknown flag among them.
    """
    parser = argparse.ArgumentParser(
        prog=f"grpo {cls.STAGE}", description=description, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags beat it, it beats the defaults")
    if cls.POSITIONAL:
        parser.add_argument("positional", nargs="*", metavar=cls.POSITIONAL.upper())
    hints = get_type_hints(cls)
    for field in _own_first(cls):
        info: Any = field.default
        default = info.default_factory() if info.default_factory else info.default
        many = get_origin(hints[field.name]) is list
        shown = " ".join(map(str, default)) if many else default
        more: dict[str, Any] = {"nargs": "+", "action": "extend"} if many else {}
        parser.add_argument(
            _flag(field.name),
            *([f"--{field.name}"] if "_" in field.name else []),
            dest=field.name,
            default=argparse.SUPPRESS,
            metavar="|".join(get_args(hints[field.name])) if get_origin(hints[field.name]) is Literal else "VALUE",
            help=f"{info.description} (default: {shown})".replace("%", "%%"),
            **more,
        )
    booleans = {flag for name, hint in hints.items() if hint is bool for flag in (_flag(name), f"--{name}")}
    try:
        known, unknown = parser.parse_known_args(_with_values(sys.argv[1:] if argv is None else argv, booleans))
    except argparse.ArgumentError as error:
        raise ConfigError([f"{error}; see `grpo {cls.STAGE} --help`"]) from None
    if unknown and not unknown[0].startswith("--"):
        raise ConfigError([f"'{unknown[0]}' belongs to no flag; see `grpo {cls.STAGE} --help`"])
    flags = vars(known)
    path = flags.pop("config", None)
    if cls.POSITIONAL and (words := flags.pop("positional")):
        flags[cls.POSITIONAL] = [*words, *flags.get(cls.POSITIONAL, [])]
    flags |= {name[2:].split("=")[0].replace("-", "_"): "" for name in unknown if name.startswith("--")}
    return read_config(path, cls, {name: _flag_value(value) for name, value in flags.items()})


def _with_values(argv: Sequence[str], booleans: Set[str]) -> list[str]:
    """The words, with ``true`` behind a flag of a yes-or-no setting that stands alone."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        alone = word in booleans and following.lower() not in _BOOLEAN_WORDS
        words.append(f"{word}=true" if alone else word)
    return words


def _flag_value(value: str | list[str]) -> Any:
    """Only mappings are read as YAML; everything else is left to the field's own type."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return value
