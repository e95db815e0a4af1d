"""Settings: defaults, YAML and flags, for every field of every stage; problems shown all at once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from helpers.stages import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from grpo.__main__ import STAGES
from grpo.base_model import BaseModelConfig
from grpo.benchmark import BenchmarkConfig
from grpo.config import GRPOConfig, GRPOTrainingConfig, SFTTrainingConfig, load_config
from grpo.evaluation import EvaluationConfig
from grpo.merge import MergeConfig
from grpo.sft_data import SFTDataConfig
from grpo.system.command_line import parse_config
from grpo.system.errors import ConfigError
from grpo.system.settings import StageConfig, json_schema, read_config

PROJECT = Path(__file__).parent.parent
each_class = pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)


def fields_of(cls: type[StageConfig]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)  # type: ignore[arg-type]


SPECIAL = {
    "format_weight": 2.0,
    "format_partial": -0.25,
    "format_invalid": -4.0,
    "format_regex": "(yes|no)",
    "prompt_fields": ["wait", "queue"],
    "prioritized_share": 0.5,
    "shard": "2/3",
}
"""Other values of fields that a rule ties to another field, or to a list of names."""

OUT_OF_ORDER = "format_partial: 1.5\n"
"""A format that is worth more than a better one."""

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def default_of(field: dataclasses.Field[Any]) -> Any:
    info: Any = field.default
    return info.default_factory() if info.default_factory else info.default


def other_than_default(cls: type[StageConfig], field: dataclasses.Field[Any]) -> Any:
    """A value that the field accepts beside the other fields' defaults, and that is not its own default."""
    default, hint = default_of(field), get_type_hints(cls)[field.name]
    if field.name in SPECIAL:
        return SPECIAL[field.name]
    if get_origin(hint) is Literal:
        return next(option for option in get_args(hint) if option != default)
    if get_origin(hint) is list:
        return ["one", "two"] if get_args(hint)[0] is str else [7, 8]
    if get_origin(hint) is dict:
        return {"queue_veh_s": 2.5, "stops": 1.0}
    if get_origin(hint) is Union:
        return 3.5
    if hint is bool:
        return not default
    if hint is int:
        return 2 * default if default > 0 else 7
    if hint is float:
        return default / 2 if default else 0.75
    assert hint is str, f"{cls.__name__}.{field.name}: a type that this test does not know"
    return "other/place"


def as_flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name.replace('_', '-')}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name.replace('_', '-')}", yaml.safe_dump(value, default_flow_style=True).strip()]
    return [f"--{name.replace('_', '-')}", str(value)]


def write_yaml(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def problems(path: Path | None, cls: type[StageConfig], **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(path, cls, overrides)
    return caught.value.problems


def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------- every field


def test_every_stage_has_its_settings() -> None:
    assert set(CONFIGS) | {"pipeline", "completion"} == set(STAGES)


@each_class
def test_flag_beats_yaml_beats_default(cls: type[StageConfig], tmp_path: Path) -> None:
    for field in fields_of(cls):
        default, other = default_of(field), other_than_default(cls, field)
        file = write_yaml(tmp_path / "settings.yaml", {field.name: other})

        def value(*argv: str, name: str = field.name) -> Any:
            return getattr(parse_config(cls, list(argv)), name)

        assert value() == default != other
        assert value("--config", file) == other
        assert value(*as_flag(field.name, other)) == other
        assert value("--config", file, *as_flag(field.name, default)) == default
        assert value(*as_flag(field.name, default), "--config", file) == default, "the order of flags does not matter"


@each_class
def test_help_shows_meaning_and_default_of_every_field(
    cls: type[StageConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit) as left:
        parse_config(cls, ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert (cls.__doc__ or "").partition("\n")[0].partition(": ")[2] in shown and "--config FILE" in shown
    assert "exit codes: 0 done" in shown and "--a_b" not in shown and " VALUE" not in shown
    options = {re.split("[ ,]", part, maxsplit=1)[0]: part for part in re.split(r"\n  (?=--)", shown)}
    for field in fields_of(cls):
        default = default_of(field)
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        default = str(default).lower() if isinstance(default, bool) else default
        info: Any = field.default
        assert len(info.description) > 8, f"{field.name} has no description"
        help_text = " ".join(options[f"--{field.name.replace('_', '-')}"].split())
        assert " ".join(f"{info.description} (default: {default}".split()) in help_text


@each_class
def test_round_trip_through_yaml(cls: type[StageConfig], tmp_path: Path) -> None:
    changed = {field.name: other_than_default(cls, field) for field in fields_of(cls)}
    for values in ({}, changed):
        config = read_config(None, cls, values)
        file = write_yaml(tmp_path / "settings.yaml", config.to_dict())
        assert cls.from_yaml(file) == config
        assert parse_config(cls, ["--config", file]) == config
        assert cls.from_yaml(file).to_dict() == config.to_dict()


def test_frozen() -> None:
    for cls in CONFIGS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().if_finished = "stop"  # type: ignore[attr-defined]


@each_class
def test_the_schema_and_the_settings_can_be_shown(
    cls: type[StageConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = {}
    for flag in ("--show-config", "--show-schema"):
        with pytest.raises(SystemExit) as left:
            parse_config(cls, [flag])
        assert left.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert cls.from_yaml(text_file(tmp_path, shown["--show-config"])) == cls()
    assert set(json.loads(shown["--show-schema"])["properties"]) == {field.name for field in fields_of(cls)}


def test_flags_have_a_heading_each_named_by_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(GRPOTrainingConfig, ["--help"])
    headings = re.findall(r"(?m)^(\S.*):$", capsys.readouterr().out)
    assert headings[0] == "train" and headings[-1] == "general"
    assert {"model and adapters", "optimization", "cost", "prompt", "run"} <= set(headings)
    assert len(headings) == len(set(headings)) >= 10


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001", "1e-06", "'1e-6'"])
def test_exponent_without_a_point_is_a_number(text: str, tmp_path: Path) -> None:
    config = GRPOTrainingConfig.from_yaml(text_file(tmp_path, f"learning_rate: {text}\ntsc_scale: {text}\n"))
    assert config.learning_rate == 1e-6 and isinstance(config.learning_rate, float)
    assert config.tsc_scale == 1e-6 and isinstance(config.tsc_scale, float)
    assert parse_config(SFTTrainingConfig, ["--learning-rate", text.strip("'")]).learning_rate == 1e-6


def test_weights_given_as_a_flag_are_numbers() -> None:
    config = parse_config(GRPOConfig, ["--cost-weights", "{delay_veh_s: 1e-6, stops: 2}"])
    assert config.cost_weights == {"delay_veh_s": 1e-6, "stops": 2.0}


def test_lists_take_commas_and_yes_or_no_needs_no_word() -> None:
    config = parse_config(GRPOConfig, ["a.sumocfg", "--seeds", "1,2", "5", "--no-save-states"])
    assert (config.scenarios, config.seeds, config.save_states) == (["a.sumocfg"], [1, 2, 5], False)
    assert parse_config(EvaluationConfig, ["--policy", "sotl,random"]).policy == ["sotl", "random"]
    for words in (["--use-vllm"], ["--use_vllm", "true"], ["--use-vllm=yes"]):
        assert parse_config(GRPOTrainingConfig, words).use_vllm is True


def test_a_file_with_a_comma_in_its_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "a,b.sumocfg").touch()
    path = str(tmp_path / "a,b.sumocfg")
    assert parse_config(GRPOConfig, [path, "--scenarios", path]).scenarios == [path, path]


def test_python_finds_the_shipped_configs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("config/tune/train.yaml") == load_config(PROJECT / "config/tune/train.yaml")


def test_one_value_in_yaml_is_a_list_of_one(tmp_path: Path) -> None:
    config = GRPOConfig.from_yaml(text_file(tmp_path, "seeds: 3\nscenarios: my.sumocfg\n"))
    assert (config.seeds, config.scenarios) == ([3], ["my.sumocfg"])


def test_flags_take_underscores_and_negative_numbers() -> None:
    config = parse_config(GRPOTrainingConfig, ["--max_steps", "-1", "--format_invalid", "-3.5", "--tsc-scale", "auto"])
    assert (config.max_steps, config.format_invalid, config.tsc_scale) == (-1, -3.5, "auto")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_not_a_finite_number_is_refused(value: str, tmp_path: Path) -> None:
    (line,) = problems(text_file(tmp_path, f"temperature: {value}\n"), GRPOTrainingConfig)
    assert "temperature" in line


@pytest.mark.parametrize("field", ["batch_size", "learning_rate", "model_path", "report_to", "tsc_scale"])
def test_yes_and_no_of_yaml_are_not_numbers_or_texts(field: str, tmp_path: Path) -> None:
    lines = problems(text_file(tmp_path, f"{field}: yes\n"), GRPOTrainingConfig)
    assert any(f"{field}: got true" in line for line in lines)


# ---------------------------------------------------------------------- problems


def test_all_problems_at_once_each_with_its_source(tmp_path: Path) -> None:
    file = text_file(
        tmp_path, "learning_rte: 1e-5\ntemperature: -1\nnum_generations: 1\nbackend: fast\nmax_steps: many\n"
    )
    lines = problems(file, GRPOTrainingConfig, batch_size="0", seeed=3)
    text = "\n".join(lines)
    assert all("\n" not in line for line in lines)
    assert f"{file}: unknown key 'learning_rte'; did you mean 'learning_rate'?" in lines
    assert "flag --seeed: unknown key 'seeed'; did you mean 'seed'?" in lines
    for field, value in {
        "temperature": "'-1'",
        "num_generations": "'1'",
        "backend": "'fast'",
        "max_steps": "'many'",
    }.items():
        assert f"{file}: {field}: got {value}: " in text
    assert "flag --batch-size: batch_size: got '0': " in text
    assert len(lines) == 7


def test_unknown_key_without_a_near_one_lists_the_keys(tmp_path: Path) -> None:
    (line,) = problems(text_file(tmp_path, "zzzz: 1\n"), GRPOConfig)
    assert "unknown key 'zzzz'; the keys are " in line and "output_dir, " in line


def test_a_config_of_another_stage_takes_one_line(tmp_path: Path) -> None:
    values = GRPOTrainingConfig().to_dict()
    (line,) = problems(Path(write_yaml(tmp_path / "settings.yaml", values)), MergeConfig)
    assert "unknown keys; is it the config of another stage? See `grpo merge --help`" in line and len(line) < 250


def test_a_flood_of_problems_is_cut(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    lines = problems(text_file(tmp_path, bomb + "output_dir: *a8\nseeds: [*a8, 10" + "0" * 5000 + "]\n"), GRPOConfig)
    assert len(lines) < 25 and sum(map(len, lines)) < 5000


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udce4", os.fsdecode(b"caf\xe9")], ids=ascii)
def test_a_text_that_no_file_can_hold_is_refused(text: str, tmp_path: Path) -> None:
    for settings in ({"output_dir": text}, {"scenarios": ["a", text]}):
        (line,) = problems(None, GRPOConfig, **settings)
        assert line.endswith("holds a character that no file can have, or that is not UTF-8")


@pytest.mark.parametrize(
    "text",
    ["{a", "{[1]: 2}", "{delay_veh_s: .nan}", "{delay_veh_s: 2, delay_veh_s: 3}", "{a: 2026-13-01}", "{" + "[" * 999],
)
def test_odd_weights_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(GRPOConfig, ["--cost-weights", text])
    (line,) = caught.value.problems
    assert line.startswith("flag --cost-weights: cost_weights: got ") and len(line) < 400


@pytest.mark.parametrize(
    ("setting", "value"), [("seed", 2**32), ("seed", -1), ("seeds", [2**31]), ("seeds", [-1]), ("seeds", [10**30])]
)
def test_seeds_that_a_library_or_sumo_would_refuse_are_refused_at_once(setting: str, value: Any) -> None:
    (line,) = problems(None, EvaluationConfig, **{setting: value})
    assert line.startswith(f"flag --{setting}: {setting}: got ")


@pytest.mark.parametrize(("written", "read"), [("017", 17), ("1_0", 10), ("+2", 2), ("1:30", None), ("0x1F", None)])
def test_numbers_are_read_as_they_are_written(written: str, read: int | None, tmp_path: Path) -> None:
    """To YAML 1.1 itself 017 is 15 and 1:30 is 90."""
    file = text_file(tmp_path, f"seeds: [{written}]\nseed: {written}\n")
    if read is None:
        assert [f"got '{written}'" in line for line in problems(file, GRPOConfig)] == [True, True]
    else:
        config = load_config(file, GRPOConfig)
        assert (config.seeds, config.seed) == ([read], read)


def test_a_key_that_is_no_text_is_unknown(tmp_path: Path) -> None:
    (line,) = problems(text_file(tmp_path, "3: 1\n"), GRPOConfig)
    assert "unknown key '3'" in line


@pytest.mark.parametrize(
    ("cls", "values", "words"),
    [
        (GRPOTrainingConfig, {"format_partial": 1.5}, "must fall in this order"),
        (GRPOTrainingConfig, {"format_invalid": -1.5}, "it must be below -1.5"),
        (GRPOTrainingConfig, {"tsc_weight": 5}, "as good as the worst valid one"),
        (GRPOTrainingConfig, {"format_weight": 0.5}, "it must be below -2.5"),
        (GRPOTrainingConfig, {"tsc_scale": 0}, "must be positive or `auto`"),
        (GRPOTrainingConfig, {"format_regex": "("}, "not a regular expression"),
        (GRPOTrainingConfig, {"format_regex": "yes|no"}, "has no group"),
        (GRPOTrainingConfig, {"max_steps": 0}, "0 trains nothing"),
        (SFTTrainingConfig, {"max_steps": 0}, "0 trains nothing"),
        (GRPOTrainingConfig, {"cost_weights": {"delay": 1}}, "the terms are delay_veh_s, "),
        (GRPOTrainingConfig, {"cost_weights": {}}, "the terms are delay_veh_s, "),
        (GRPOConfig, {"cost_weights": {"delay": 1}}, "the terms are delay_veh_s, "),
        (GRPOConfig, {"max_green": 8}, "at least min_green + extend_seconds = 10"),
        (EvaluationConfig, {"max_green": 8}, "at least min_green + extend_seconds"),
        (BenchmarkConfig, {"max_green": 8}, "at least min_green + extend_seconds"),
        (GRPOTrainingConfig, {"prompt_fields": ["queue", "speed"]}, "prompt_fields: unknown speed; choose from lanes"),
        (SFTDataConfig, {"prompt_fields": ["speed", "queue"]}, "prompt_fields: unknown speed; choose from "),
        (BaseModelConfig, {"prompt_fields": []}, "prompt_fields: empty, or one field twice; choose from lanes, "),
        (SFTDataConfig, {"prompt_fields": ["queue", "queue"]}, "prompt_fields: empty, or one field twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_rules_between_fields(cls: type[StageConfig], values: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = Path(write_yaml(tmp_path / "settings.yaml", values))
    lines = problems(file, cls)
    assert any(line.startswith(f"{file}: ") and words in line for line in lines), lines


def test_rules_between_fields_that_hold() -> None:
    read_config(None, GRPOTrainingConfig, {"batch_size": 3})
    read_config(None, GRPOTrainingConfig, {"num_generations": 8})
    read_config(None, GRPOTrainingConfig, {"format_invalid": -1.51})
    read_config(None, GRPOConfig, {"max_green": 10})


def test_several_broken_rules_are_shown_together(tmp_path: Path) -> None:
    lines = problems(
        text_file(tmp_path, "format_invalid: 0\nmax_steps: 0\ncost_weights: {x: 1}\n"),
        GRPOTrainingConfig,
    )
    text = "\n".join(lines)
    for words in ("must fall in this order", "trains nothing", "the terms are"):
        assert words in text


def test_broken_rules_are_shown_beside_fields_out_of_range(tmp_path: Path) -> None:
    lines = problems(
        text_file(tmp_path, OUT_OF_ORDER + "temperature: -1\nmax_steps: 0\n"),
        GRPOTrainingConfig,
    )
    assert len(lines) == 3
    (line,) = problems(text_file(tmp_path, OUT_OF_ORDER + "format_strict: some\n"), GRPOTrainingConfig)
    assert "format_strict: got 'some'" in line, "a rule is not judged where one of its fields is wrong"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1, 2\nb: 3\n", "line 2: malformed YAML"),
        (b"a: b: c\n", "line 1: malformed YAML"),
        (b"\tseed: 1\n", "malformed YAML"),
        (b"seed: !!python/object:os.system 1\n", "malformed YAML"),
        (b"- seed\n- 1\n", "holds a list"),
        (b"just words\n", "holds a str"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"seed: \x07\n", "malformed YAML"),
        (b"seed: 2026-13-01\n", "malformed YAML"),
        (b"? [seed]\n: 1\n", "malformed YAML"),
        (b"seed: 1\nseed: 2\n", "line 2: malformed YAML (the key 'seed' stands there twice)"),
        (b"seed: !!timestamp x\n", "malformed YAML"),
        (b"seed: " + b"[" * 5000, "malformed YAML"),
    ],
)
def test_file_that_is_no_settings(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    (line,) = problems(path, GRPOConfig)
    assert line.startswith(f"{path}: ") and words in line and "\n" not in line


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        (line,) = problems(path, GRPOConfig)
        assert line.startswith(f"{path}: config cannot be read (")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "{}\n"])
def test_empty_file_means_the_defaults(text: str, tmp_path: Path) -> None:
    assert GRPOConfig.from_yaml(text_file(tmp_path, text)) == GRPOConfig()


@given(st.text(max_size=60))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    if isinstance(values, dict):
        try:
            read_config(None, GRPOConfig, {str(key): value for key, value in values.items()})
        except ConfigError as error:
            assert error.problems


@given(
    st.sampled_from([field.name for field in dataclasses.fields(GRPOTrainingConfig)]),
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=8), SCALARS, max_size=3),
)
def test_any_value_gives_a_config_or_names_its_field(name: str, value: Any) -> None:
    try:
        config = read_config(None, GRPOTrainingConfig, {name: value})
    except ConfigError as error:
        assert all(line and "\n" not in line for line in error.problems)
        assert any(name in line for line in error.problems)
    else:
        assert getattr(config, name) is not None


# ---------------------------------------------------------------------- files of the project


def class_of(path: Path) -> type[StageConfig]:
    """``grpo_config.yaml`` holds the settings of training; every other file is named after its stage, and in a folder
    of steps numbered."""
    stage = "train" if path.name == "grpo_config.yaml" else path.stem.removesuffix("_config")
    stage = re.sub(r"^\d+_", "", stage) if path.parent.name != "config" else stage
    assert stage in CONFIGS, f"{path}: is named after no stage"
    return CONFIGS[stage]


OF_STAGES = sorted(path for path in (PROJECT / "config").rglob("*.y*ml") if path.parent.name != "accelerate")


def test_every_config_file_loads() -> None:
    for path in OF_STAGES:
        config = load_config(path, class_of(path))
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            assert str(getattr(config, key)) == str(value) or getattr(config, key) == float(value), (path, key)


def test_training_config_file_comments_every_key() -> None:
    lines = (PROJECT / "config" / "grpo_config.yaml").read_text(encoding="utf-8").splitlines()
    keys = {line.split(":")[0]: line for line in lines if re.match(r"[a-z]", line)}
    assert set(keys) == {field.name for field in dataclasses.fields(GRPOTrainingConfig)}
    assert [key for key, line in keys.items() if "  #" not in line and not line.endswith(" #")] == []


def test_training_config_file_holds_the_promised_values() -> None:
    config: StageConfig = load_config(PROJECT / "config" / "grpo_config.yaml")
    promised = {
        "model_path": "model/sft_model", "max_seq_length": 2048, "learning_rate": 1e-5, "batch_size": 2,
        "gradient_accumulation_steps": 4, "num_generations": 4, "temperature": 0.9, "kl_coeff": 0.1,
        "max_new_tokens": 50, "top_p": 0.9, "repetition_penalty": 1.0, "num_train_epochs": 3, "warmup_steps": 10,
        "logging_steps": 5, "save_steps": 50, "optim": "adamw_8bit", "format_weight": 1.0, "tsc_weight": 1.0,
        "max_workers": 4, "extend_seconds": 5,
    }  # fmt: skip
    assert isinstance(config, GRPOTrainingConfig)
    assert {key: getattr(config, key) for key in promised} == promised


# ---------------------------------------------------------------------- for editors


@each_class
def test_the_schema_describes_every_setting_and_accepts_what_the_stage_accepts(
    cls: type[StageConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(SystemExit):
        parse_config(cls, ["--show-schema"])
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    accepts = jsonschema.Draft202012Validator(schema).is_valid
    for field in fields_of(cls):
        described = schema["properties"][field.name]
        assert len(described["description"]) > 8 and described["default"] == default_of(field), field.name
        assert accepts({field.name: other_than_default(cls, field)}), field.name
        if get_origin(get_type_hints(cls)[field.name]) is list:
            assert accepts({field.name: other_than_default(cls, field)[0]}), "one value is read as a list of one"
        assert not accepts({field.name: None}) and not accepts({field.name: [{}]}), field.name
    assert accepts(json.loads(json.dumps(cls().to_dict()))) and not accepts({"sede": 1})


def test_every_config_file_fits_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """As an editor reads it: YAML 1.2, in which ``2e-4`` is a number."""
    jsonschema = pytest.importorskip("jsonschema")
    for path in OF_STAGES:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in values.items():
            if isinstance(value, str) and re.fullmatch(r"-?\d[\d.]*e-?\d+", value):
                values[key] = float(value)
        jsonschema.validate(values, json_schema(class_of(path)))
