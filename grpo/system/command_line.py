"""Flags of a stage, made from its settings: parsing, and a help that groups them.

A setting's flag is its name with dashes; ``--x_y`` is understood too. Flags of yes-or-no settings need no value, and
have a ``--no-`` form.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .console import set_manners
from .errors import ConfigError
from .settings import C, StageConfig, flag_of, json_schema, read_config, read_yaml

EXIT_CODES = """exit codes: 0 done; 1 a fault of this program; 2 something to correct, nothing was written over;
            3 results that cannot be relied on; 130 interrupted (start it again to resume)"""
_BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n")
_POSITIONALS = {"output_dir": "DIR"}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}", "multiple_of": "in steps of {}"}


def parse_config(cls: type[C], argv: Sequence[str] | None) -> C:
    """Parse ``--config FILE`` and one flag for every field of ``cls``; flags beat the file.

    ``--show-config`` prints the settings that would be used, ``--show-schema`` a JSON Schema for editors; both end the
    program. Raises :class:`ConfigError` with one line for every problem, an unknown flag among them.
    """
    parser = _parser(cls)
    booleans = {name for name, hint in get_type_hints(cls).items() if hint is bool}
    words = _normal(sys.argv[1:] if argv is None else argv, booleans)
    try:
        known, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError([f"{error}; see `grpo {cls.STAGE} --help`"]) from None
    if unknown and not unknown[0].startswith("--"):
        raise ConfigError([f"'{unknown[0]}' belongs to no flag; see `grpo {cls.STAGE} --help`"])
    flags = vars(known)
    path, shows_config, shows_schema = (flags.pop(name, None) for name in ("config", "show_config", "show_schema"))
    set_manners(quiet=flags.pop("quiet"), as_json=flags.pop("json", False), following=following_step(path))
    if cls.POSITIONAL and (given := flags.pop("positional")):
        many = get_origin(get_type_hints(cls)[cls.POSITIONAL]) is list
        if not many and len(given) > 1:
            raise ConfigError([f"'{given[1]}' belongs to no flag; see `grpo {cls.STAGE} --help`"])
        flags[cls.POSITIONAL] = [*given, *flags.get(cls.POSITIONAL, [])] if many else given[0]
    flags |= {name[2:].split("=")[0].replace("-", "_"): "" for name in unknown if name.startswith("--")}
    config = read_config(path, cls, {name: _flag_value(value) for name, value in flags.items()})
    if shows_schema:
        print(json.dumps(json_schema(cls), ensure_ascii=False, indent=1))
    elif shows_config:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
    if shows_config or shows_schema:
        raise SystemExit(0)
    return config


def following_step(config: str | None) -> str | None:
    """The command of the step after ``config`` in a folder of ``NUMBER_STAGE.yaml``; ``None`` where there is none."""
    steps = {}
    for path in Path(config).parent.glob("*_*.yaml") if config else ():
        number, _, stage = path.stem.partition("_")
        if number.isdecimal():
            steps[int(number), stage] = path
    own = next((key for key, path in steps.items() if config and path == Path(config)), None)
    later = sorted(key for key in steps if own and key > own)
    return f"grpo {later[0][1]} --config {shlex.quote(str(steps[later[0]]))}" if later else None


def _parser(cls: type[StageConfig]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"grpo {cls.STAGE}",
        usage=f"grpo {cls.STAGE} {_positional(cls)}[--config FILE] [flags]",
        description=(cls.__doc__ or "").partition("\n")[0].partition(": ")[2],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    if cls.POSITIONAL:
        parser.add_argument("positional", nargs="*", metavar=cls.POSITIONAL.upper(), help=argparse.SUPPRESS)
    hints = get_type_hints(cls)
    for title, fields in _groups(cls).items():
        group = parser.add_argument_group(title)
        for field in fields:
            info: Any = field.default
            many = get_origin(hints[field.name]) is list
            arguments: dict[str, Any] = {"nargs": "+", "action": "extend"} if many else {}
            group.add_argument(
                flag_of(field.name),
                dest=field.name,
                default=argparse.SUPPRESS,
                metavar=_metavar(field.name, hints[field.name]),
                help=f"{info.description} ({_default_and_range(info, many)})".replace("%", "%%"),
                **arguments,
            )
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="FILE", help="YAML file of settings; flags beat it, it beats the defaults")
    general.add_argument("--show-config", action="store_true", help="print the settings as YAML, and end")
    general.add_argument("--show-schema", action="store_true", help="print a JSON Schema of the settings, and end")
    general.add_argument("-q", "--quiet", action="store_true", help="no progress, notes and summary on stderr")
    if cls.PRINTS_JSON:
        general.add_argument("--json", action="store_true", help="print JSON for programs instead of tables")
    general.add_argument("-h", "--help", action="help", help="show this text, and end")
    return parser


def _positional(cls: type[StageConfig]) -> str:
    """How the words without a flag are shown in the usage."""
    if not cls.POSITIONAL:
        return ""
    many = get_origin(get_type_hints(cls)[cls.POSITIONAL]) is list
    return f"[{_POSITIONALS.get(cls.POSITIONAL, cls.POSITIONAL.upper())}{' ...' if many else ''}] "


@dataclass(frozen=True, slots=True)
class FlagHelp:
    """A flag as a shell completes it."""

    names: tuple[str, ...]
    about: str
    choices: tuple[str, ...] = ()
    """The values that it may have; empty where these cannot be listed."""
    value: bool = False
    """Whether a value follows it."""
    many: bool = False
    """Whether several values may follow it."""


def flags_of(cls: type[StageConfig]) -> list[FlagHelp]:
    """The flags of a stage, in the order of its help."""
    hints, found = get_type_hints(cls), []
    for action in _parser(cls)._actions:
        hint = hints.get(action.dest)
        names, about = tuple(action.option_strings), (action.help or "").replace("%%", "%").rpartition(" (default:")
        switches = action.nargs == 0 or hint is bool
        one = FlagHelp(names, about[0] or about[2], _choices(hint), not switches, action.nargs == "+")
        found += [one] if names else []
        if hint is bool:
            found.append(FlagHelp((f"--no-{names[0][2:]}",), f"not: {one.about}"))
    return found


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType, list):
        return tuple(choice for one in get_args(hint) for choice in _choices(one))
    return ("true", "false") if hint is bool else ()


def _groups(cls: type[StageConfig]) -> dict[str, list[dataclasses.Field[Any]]]:
    """Fields under the heading of the class that first declares them; the stage's own come first."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    owner = {name: base for base in cls.__mro__ for name in get_annotations(base) if name in fields}
    groups: dict[str, list[dataclasses.Field[Any]]] = {}
    for base in cls.__mro__:
        shared = not hasattr(base, "STAGE") and bool(base.__doc__)
        title = (base.__doc__ or "").splitlines()[0].rstrip(".").lower() if shared else cls.STAGE
        if own := [field for name, field in fields.items() if owner[name] is base]:
            groups.setdefault(title, []).extend(own)
    return groups


def _metavar(name: str, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return "|".join(_metavar(name, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return _metavar(name, get_args(hint)[0])
    if get_origin(hint) is dict:
        return "{KEY: NUMBER}"
    if hasattr(hint, "__metadata__"):
        return _metavar(name, get_args(hint)[0])
    texts = {"output_dir": "DIR", "scenarios": "SUMOCFG", "sumocfg": "SUMOCFG"}
    paths = "PATH" if name.endswith("_path") else "TEXT"
    return {bool: "true|false", int: "INT", float: "NUMBER"}.get(hint) or texts.get(name, paths)


def _default_and_range(info: Any, many: bool) -> str:
    default = info.default_factory() if info.default_factory else info.default
    text = " ".join(map(str, default)) if many else str(default).lower() if isinstance(default, bool) else str(default)
    limits = [(name, limit) for name in _BOUNDS for limit in info.metadata if hasattr(limit, name)]
    bounds = " ".join(_BOUNDS[name].format(getattr(limit, name)) for name, limit in limits)
    return f"default: {text}; {bounds}" if bounds else f"default: {text}"


def _normal(argv: Sequence[str], booleans: set[str]) -> list[str]:
    """The words with dashes in the names of flags, and a value behind every flag of a yes-or-no setting."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
            key = name[2:].replace("-", "_")
            if not equals and key in booleans and following.lower() not in _BOOLEAN_WORDS:
                equals, value = "=", "true"
            elif not equals and key.removeprefix("no_") in booleans and key not in booleans:
                name, equals, value = f"--{name[5:]}", "=", "false"
            word = name + equals + value
        words.append(word)
    return words


def _flag_value(value: str | list[str]) -> Any:
    """Mappings are read as YAML, ``a,b`` as members of a list; everything else is left to the field's own type."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return read_yaml(value)
        except yaml.YAMLError:
            return value
    if isinstance(value, list):
        return [one for word in value for one in ([word] if Path(word).exists() else word.split(","))]
    return value
