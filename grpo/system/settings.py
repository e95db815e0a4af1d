"""How settings are read: YAML under flags, checked as a whole, every problem reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import ConfigError, one_line
from .files import can_be_written

STRICT = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
"""For pydantic: unknown keys and numbers that are not finite are refused, defaults are checked like everything else."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""What SUMO takes as a seed."""
_MOST_PROBLEMS = 20
_MOST_UNKNOWN = 3
"""Unknown keys up to which each gets a line; more mean a file for something else."""


def refuse(problems: list[str]) -> None:
    """Raise the problems of a config, one a line, for pydantic to pass on."""
    if problems:
        raise ValueError("\n".join(problems))


class StageConfig:
    """What the settings of every stage share. Subclasses are frozen pydantic dataclasses."""

    STAGE: ClassVar[str]
    POSITIONAL: ClassVar[str | None] = None
    """The field that takes the words of the command line that belong to no flag: a list, or one text."""
    PRINTS_JSON: ClassVar[bool] = False
    """Whether the stage has `--json`: its answer on stdout as data. How a result is shown is no setting of it."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file; raises :class:`ConfigError` listing every problem."""
        return read_config(path, cls)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, equal after a round trip through YAML."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, config=STRICT)
class FolderSettings(StageConfig):
    """Run."""

    if_finished: Literal["stop", "move_aside"] = Field(
        default="stop",
        description="what to do where the output folder holds a finished run: "
        "`stop` with an error, or `move_aside` (rename the old folder to NAME.1, NAME.2, ...)",
    )


C = TypeVar("C", bound=StageConfig)


def read_config(path: str | Path | None, cls: type[C], overrides: Mapping[str, Any] | None = None) -> C:
    """Build a config of class ``cls`` from YAML, a file here or a shipped one, and overrides.

    Raises :class:`ConfigError` with one line for every problem of the file and the overrides together.
    """
    path = preset(path) if path else None
    values = _read_yaml(path) if path else {}
    source = {key: str(path) for key in values} | {key: f"flag {flag_of(key)}" for key in overrides or {}}
    values |= overrides or {}
    problems, values = _plain_problems(cls, values, source)
    adapter, wrong = TypeAdapter(cls), {problem.split(": ")[1] for problem in problems}
    try:
        config = adapter.validate_python(values)
    except ValidationError as error:
        for item in error.errors():
            if item["loc"]:
                key = str(item["loc"][0])
                problems.append(f"{source.get(key, 'defaults')}: {key}: got {_short(item['input'])}: {item['msg']}")
                wrong.add(key)
        # Pydantic leaves the rules between fields out where a field is wrong: ask again without those fields.
        try:
            adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
        except ValidationError as between:
            rules = between.errors()[0]["msg"].removeprefix("Value error, ").splitlines()
            problems += [f"{path or 'flags'}: {rule}" for rule in rules if wrong.isdisjoint(re.findall(r"\w+", rule))]
    if problems:
        shown = list(dict.fromkeys(problems))
        more = len(shown) - _MOST_PROBLEMS
        raise ConfigError(shown[:_MOST_PROBLEMS] + ([f"... and {more} more problems"] if more > 0 else []))
    return config


def _plain_problems(
    cls: type[StageConfig], values: Mapping[str, Any], source: Mapping[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """Problems that pydantic would not name well, and the values without them; a single value for a list is wrapped."""
    hints = {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}
    unknown = [key for key in values if key not in hints]
    problems, kept = [], {}
    if len(unknown) > _MOST_UNKNOWN:
        shown = ", ".join(str(key) for key in unknown[:_MOST_UNKNOWN])
        problems.append(
            f"{source[unknown[0]]}: {shown}, ...: {len(unknown)} unknown keys; is it the config of another stage? "
            f"See `grpo {getattr(cls, 'STAGE', '')} --help`"
        )
        unknown = []
    for key in unknown:
        near = difflib.get_close_matches(str(key), hints, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(hints)}"
        problems.append(f"{source[key]}: unknown key '{key}'; {hint}")
    for key, value in values.items():
        if key not in hints:
            continue
        many = get_origin(hints[key]) is list
        value = [value] if many and isinstance(value, str) else value
        if isinstance(value, bool) and hints[key] is not bool:
            problems.append(f"{source[key]}: {key}: got {str(value).lower()}, which is neither a number nor a text")
        elif not all(map(can_be_written, value if isinstance(value, list) else [value])):
            problems.append(f"{source[key]}: {key}: holds a character that no file can have, or that is not UTF-8")
        else:
            kept[key] = value
    return problems, kept


def _short(value: Any) -> str:
    """``repr``, cut short: a YAML file can hold values without end."""
    return repr(value[:200]) if isinstance(value, str) else reprlib.repr(value)[:200]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once. Numbers stay text, which the settings' types read as they read flags:
    to YAML itself ``017`` is 15 and ``1:30`` is 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:index]):
                problem = f"the key '{key.value}' stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """What YAML says; raises :class:`yaml.YAMLError` for all that is none, or is nested without end."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, AttributeError, TypeError, RecursionError):  # a date such as 2026-13-01, ...
        raise yaml.YAMLError from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{path}: config cannot be read ({error.strerror}); give the path of a YAML file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: config is not UTF-8 text; give the path of a YAML file"]) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        reason = getattr(error, "problem", None) or "not YAML"
        raise ConfigError([f"{path}: {line}malformed YAML ({reason}); write one `key: value` a line"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: holds a {type(values).__name__}, expected `key: value` lines"])
    return values


def commented_yaml(head: Sequence[str], settings: Mapping[str, tuple[Any, str]]) -> str:
    """A config to read and to change: lines of ``head``, then each setting with its value and why it has it."""
    lines = [(f"{key}: {_flow(value)}", why) for key, (value, why) in settings.items()]
    width = min(44, max(len(line) for line, _ in lines))
    texts = [f"{line:<{width}}  # {one_line(why)}" if why else line for line, why in lines]
    return "\n".join([*(f"# {one_line(line)}".rstrip() for line in head), *texts, ""])


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("...\n").strip()


def preset(path: str | Path) -> Path:
    """``path``, or what the package ships under that name, such as ``config/demo``, if there is none here."""
    path, package = Path(path), Path(__file__).resolve().parents[1]
    if path.exists() or path.parts[:1] != ("config",):
        return path
    shipped = (home.joinpath(*path.parts[1:]) for home in (package / "presets", package.parent / "config"))
    return next((one for one in shipped if one.exists()), path)


def json_schema(cls: type[StageConfig]) -> dict[str, Any]:
    """What an editor needs to complete and check a YAML file of these settings: a JSON Schema with every default."""
    schema = TypeAdapter(cls).json_schema()
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        described, info = schema["properties"][field.name], cast(Any, field.default)
        described.setdefault("default", info.default_factory() if info.default_factory else info.default)
        if described.get("type") == "array":  # one value is read as a list of one
            described["type"] = ["array", *dict.fromkeys(["string", described["items"]["type"]])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")
