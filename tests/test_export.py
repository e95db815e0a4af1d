"""Exports: what is written decides like the model, and what does not is not finished."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.choosing import random_decider
from helpers.tiny import rows_of, tiny_model, tiny_observation, tiny_rows, tiny_tokenizer, write_dataset

from grpo import export as module
from grpo.__main__ import main
from grpo.config import GRPOTrainingConfig, SFTTrainingConfig
from grpo.export import COIN_MARGIN, ExportConfig, adapter_of, compare, export
from grpo.models.folder import SHIPPED, base_of, is_adapter, prompt_format_of, resolve_model
from grpo.models.gguf_file import FileTokenizer, load_gguf
from grpo.models.loading import load_for_inference, load_for_training
from grpo.models.random_states import draw_states
from grpo.models.saving import save_merged
from grpo.policies.torch_scorer import make_policy
from grpo.prompt_builder import PHASE_FIELDS, PromptFormat, ask
from grpo.records import ActionSet, GRPODataEntry
from grpo.system.console import guarded
from grpo.system.errors import ConfigError, DataError, ModelError, OutputError, UnreliableError
from grpo.training import train_grpo

pytestmark = pytest.mark.slow

FORMAT = PromptFormat("zh", ("lanes", "queue", "wait"))
LORA: dict[str, Any] = {"lora_rank": 4, "lora_min_parameters": 0, "lora_target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """Where no dataset of an earlier run lies about: the gate would take its states."""
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture(scope="module")
def lora_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model as a LoRA training leaves it, the adapters far from zero."""
    return trained_on(random_model, tmp_path_factory.mktemp("lora") / "model")


def trained_on(start: Path, folder: Path) -> Path:
    import torch

    loaded = load_for_training(SFTTrainingConfig(model_path=str(start), **LORA))
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_merged(loaded.model, loaded.tokenizer, folder, prompt_format=FORMAT)
    manifest = {"stage": "sft", "settings": {"model_path": str(start), **LORA}, "versions": {}, "git_commit": None}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "agreement": 0.875}))
    return folder


def config(model: Path | str, output: Path, fmt: str = "merged_16bit", **changes: Any) -> ExportConfig:
    return ExportConfig(
        **{"model_path": str(model), "output_dir": str(output), "format": fmt, "validation_rows": 24, **changes}
    )


def logits(model: Any, tokenizer: Any, prompt_format: PromptFormat = FORMAT) -> Any:
    import torch

    prompts = [ask(tiny_observation(random.Random(seed)), prompt_format) for seed in range(6)]
    texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the code block of an export's README prints, run in that folder."""
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


# Merged


def test_the_shipped_model_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export(config("pretrained", tmp_path / "out"))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert prompt_format_of(folder) == prompt_format_of(SHIPPED["pretrained"])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    got = logits(plain, AutoTokenizer.from_pretrained(folder))
    assert torch.allclose(got, logits(*load_for_inference(resolve_model("pretrained"), "cpu")), atol=0.05)

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["weights"] == "float16"
    gate = manifest["gate"]
    assert (gate["states"], gate["differing"], gate["prompts_read_differently"]) == (24, 0, 0)
    assert 0 < gate["largest_difference"] < 0.005 and gate["states_from"] == "random, seed 42"
    example = json.loads((folder / "example.json").read_text())
    assert run_readme(folder, monkeypatch) == example["answer"] + "\n"


def test_a_merged_export_is_a_policy_and_a_start_of_training(tmp_path: Path) -> None:
    folder = export(config("pretrained", tmp_path / "out"))
    seen = [tiny_observation(random.Random(seed)) for seed in range(20)]
    one, other = (make_policy(name, seed=0).decide(seen) for name in ("pretrained", str(folder)))
    assert [decision.action for decision in one] == [decision.action for decision in other]
    assert load_for_training(GRPOTrainingConfig(model_path=str(folder))).model.num_parameters() > 0
    again = export(config(folder, tmp_path / "again"))  # nothing is left to round
    assert json.loads((again / "manifest.json").read_text())["gate"]["largest_difference"] == 0


def test_a_large_model_is_stored_as_it_computes(random_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("grpo.models.loading._SMALL", 1)
    folder = export(config(random_model, tmp_path / "out", max_differing=24))
    assert json.loads((folder / "manifest.json").read_text())["weights"] == "bfloat16"
    assert prompt_format_of(folder) is None  # nothing says what the source was taught, and nothing is made up
    assert "nothing says what the model was taught" in (folder / "README.md").read_text()


def test_weights_beyond_fp16_are_stored_as_bf16(random_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_for_inference(str(random_model), "cpu")
    model.model.norm.weight[0] = 1e5
    save_merged(model, tokenizer, tmp_path / "m", prompt_format=FORMAT)
    folder = export(config(tmp_path / "m", tmp_path / "out", max_differing=24))
    assert json.loads((folder / "manifest.json").read_text())["weights"] == "bfloat16"


# Adapter


def test_a_lora_training_keeps_its_adapter(answering_model: Path, dataset: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "max_steps": 2,
        "learning_rate": 0.02,
        "warmup_steps": 0,
        "validation_rows": 0,
        "max_new_tokens": 8,
    }
    trained = train_grpo(
        GRPOTrainingConfig(
            model_path=str(answering_model),
            dataset_path=str(dataset),
            output_dir=str(tmp_path / "m"),
            estimator="exact",
            optim="adamw_torch",
            **settings,
            **LORA,
        )
    )
    assert base_of(str(trained / "adapter")) == str(answering_model.resolve())
    base = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32)
    merged, tokenizer = load_for_inference(str(trained), "cpu")
    start = logits(base, tokenizer)
    got = logits(PeftModel.from_pretrained(base, trained / "adapter").eval(), tokenizer)
    assert torch.allclose(got, logits(merged, tokenizer), atol=1e-4)
    assert (got - start).abs().max() > 1e-2
    folder = export(config(trained, tmp_path / "out", "adapter", dataset_path=str(dataset)))
    gate = json.loads((folder / "manifest.json").read_text())["gate"]
    assert (gate["states"], gate["differing"], gate["states_from"]) == (24, 0, str(dataset))


def test_an_exported_adapter(lora_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    folder = export(config(lora_model, tmp_path / "out", "adapter"))
    assert is_adapter(str(folder)) and prompt_format_of(folder) == FORMAT
    assert not (folder / "model.safetensors").exists()
    expected = logits(*load_for_inference(str(lora_model), "cpu"))
    assert torch.allclose(logits(*load_for_inference(str(folder), "cpu")), expected, atol=1e-4)
    further = load_for_training(GRPOTrainingConfig(model_path=str(folder), **LORA))
    assert torch.allclose(logits(further.model.eval(), further.tokenizer), expected, atol=1e-4)
    assert make_policy(str(folder), seed=0).decide([tiny_observation(random.Random(0))])
    run_readme(folder, monkeypatch)


@pytest.mark.parametrize("fmt", ["adapter", "merged_16bit"])
def test_the_adapter_of_a_model_is_a_model_too(lora_model: Path, tmp_path: Path, fmt: str) -> None:
    folder = export(config(lora_model / "adapter", tmp_path / "out", fmt))
    assert is_adapter(str(folder)) is (fmt == "adapter")
    assert "### grpo sft" in (folder / "README.md").read_text()  # the record lies one folder up


def test_an_adapter_trained_on_an_adapter_is_refused(lora_model: Path, tmp_path: Path) -> None:
    second = trained_on(lora_model / "adapter", tmp_path / "second")
    assert not (second / "adapter").exists()
    with pytest.raises(ModelError, match=r"started from the adapter .*adapter, which was merged first.*merged_16bit"):
        export(config(second, tmp_path / "out", "adapter"))
    shutil.copytree(lora_model / "adapter", tmp_path / "by_hand")
    settings = json.loads((tmp_path / "by_hand" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(lora_model / "adapter")
    (tmp_path / "by_hand" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="which is an adapter and no model"):
        adapter_of(str(tmp_path / "by_hand"))
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_trained_anew_is_found_out(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", seed=0)
    trained = trained_on(base, tmp_path / "trained")
    tiny_model(base, seed=7)
    with pytest.raises(UnreliableError, match="decides otherwise"):
        export(config(trained, tmp_path / "out", "adapter"))
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="no such model folder"):
        export(config(trained, tmp_path / "other", "adapter"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("model", ["pretrained", "org/name"])
def test_a_model_without_adapter_is_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="export merged_16bit or gguf") as caught:
        export(config(model, tmp_path / "out", "adapter"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# GGUF


def test_the_shipped_model_as_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    folder = export(config("pretrained", tmp_path / "out", "gguf"))
    model, tokenizer = load_for_inference(resolve_model("pretrained"), "cpu")
    prompt_format = prompt_format_of(SHIPPED["pretrained"])
    assert prompt_format is not None
    read = FileTokenizer(folder / "model.gguf")
    got, expected = (
        logits(load_gguf(folder / "model.gguf"), read, prompt_format),
        logits(model, tokenizer, prompt_format),
    )
    assert torch.allclose(got, expected, atol=0.05)
    assert run_readme(folder, monkeypatch) == json.loads((folder / "example.json").read_text())["answer"] + "\n"

    times = [
        replace(tiny_observation(random.Random(0)), simulation_time=float(seconds))
        for seconds in (7, 3600, 86405, 100000)
    ]
    prompts = [ask(seen, prompt_format) for seen in times]
    texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    assert texts == read.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    assert read(texts)["input_ids"] == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_what_gguf_cannot_say_of_the_tokenizer_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven digits with a nought at the fourth place: read in threes, not as the longest numbers from the left."""

    def renamed(row: GRPODataEntry, name: str) -> GRPODataEntry:
        """With another id for its phase ``0``."""
        names = {"0": name}
        return replace(
            row,
            phase_order=tuple(names.get(phase, phase) for phase in row.phase_order),
            current_phase_id=names.get(row.current_phase_id, row.current_phase_id),
            phase_metrics={names.get(phase, phase): metrics for phase, metrics in row.phase_metrics.items()},
        )

    rows = [renamed(row, name) for name in ("1230456", "123456") for row in tiny_rows(2)]
    write_dataset(tmp_path / "data", rows)
    folder = export(config("pretrained", tmp_path / "out", "gguf", dataset_path=str(tmp_path / "data")))
    assert json.loads((folder / "manifest.json").read_text())["gate"]["prompts_read_differently"] == 2
    assert "2 of the 4 prompts are split into other tokens" in (folder / "README.md").read_text()
    assert "2 of the prompts are split into other tokens" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_gguf_of_each_architecture(kind: str, random_model: Path, tmp_path: Path) -> None:
    """Weights come back the same; more embeddings than tokens, grouped heads, both kinds of output layer."""
    import torch

    source = random_model if kind == "qwen2" else other_architecture(kind, tmp_path / "m")
    folder = export(config(source, tmp_path / "out", "gguf"))
    model, tokenizer = load_for_inference(str(source), "cpu")
    back = load_gguf(folder / "model.gguf").state_dict()
    assert back.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back[name], weight if weight.dim() == 1 else weight.half().float()), name
    read = FileTokenizer(folder / "model.gguf")
    text = '{"a": 12, "päß": "中文"}<|end|> 4567\n\n  x'
    assert read(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def other_architecture(kind: str, folder: Path, **changes: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128 if kind == "qwen3" else 16}
    values = {"vocab_size": len(tokenizer) + 5, "tie_word_embeddings": kind != "llama", **sizes, **heads, **changes}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("olmo2", {}, "a model of type olmo2 cannot be written as GGUF"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
    ],
)
def test_what_cannot_be_gguf_is_one_line(kind: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = other_architecture(kind, tmp_path / "m", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        export(config(source, tmp_path / "out", "gguf"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_tokenizer_that_gguf_has_no_name_for(random_model: Path, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    model, tokenizer = load_for_inference(str(random_model), "cpu")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ModelError, match="GGUF has no name for it"):
        module._vocabulary(model, tokenizer, "m")


# Another action set


@pytest.mark.parametrize("fmt", ["merged_16bit", "gguf"])
@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_a_model_of_another_action_set(
    action_set: ActionSet, fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_decider(action_set, tmp_path / "m")
    folder = export(config(source, tmp_path / "out", fmt, max_differing=2))  # random weights: many a coin
    assert prompt_format_of(folder) == PromptFormat("en", action_set=action_set)
    gate = json.loads((folder / "manifest.json").read_text())["gate"]
    assert (gate["states"], gate["prompts_read_differently"]) == (24, 0)
    text = (folder / "README.md").read_text()
    answer = '{"phase": "0"}' if action_set == "choose" else '{"extend": "no"}'
    assert f"- action set: `{action_set}`\n" in text and f"`{answer}`" in text
    assert "- `called`: vehicles in sight" in text and "- `red`: seconds since it was green" in text
    example = json.loads((folder / "example.json").read_text())
    if action_set == "choose":
        best = max(example["probabilities"], key=example["probabilities"].__getitem__)
        assert example["answer"] == f'{{"phase": "{best}"}}' and len(example["probabilities"]) > 1
    else:
        assert example["answer"] == f'{{"extend": "{"yes" if example["probability_of_yes"] >= 0.5 else "no"}"}}'
    (state,) = draw_states(np.random.default_rng(42), 24, action_set)[:1]
    assert example["messages"] == ask(state, PromptFormat("en", action_set=action_set))


def test_the_states_are_of_the_models_action_set(tmp_path: Path) -> None:
    source = random_decider("choose", tmp_path / "m")
    write_dataset(tmp_path / "data" / "grpo_datasets", tiny_rows(8))
    allowed: dict[str, Any] = {"max_differing": 24}
    folder = export(config(source, tmp_path / "auto", **allowed))  # the rows that lie here are of another one
    assert json.loads((folder / "manifest.json").read_text())["gate"]["states_from"] == "random, seed 42"
    with pytest.raises(DataError, match=r"holds no rows of the action set choose; .*--dataset-path random"):
        export(config(source, tmp_path / "out", dataset_path="data/grpo_datasets"))
    write_dataset(tmp_path / "choices", rows_of("choose", 8))
    folder = export(config(source, tmp_path / "rows", dataset_path="choices", **allowed))
    assert json.loads((folder / "manifest.json").read_text())["gate"]["states_from"] == "choices"
    with pytest.raises(ModelError, match="was taught the action set choose, not cycle"):
        export(config(source, tmp_path / "out", action_set="cycle"))
    assert not (tmp_path / "out").exists()


# The gate


def chances(of_yes: float) -> dict[str, float]:
    """The probabilities of a state."""
    return {"yes": of_yes, "no": 1 - of_yes}


def test_decisions_are_compared() -> None:
    near = COIN_MARGIN / 2
    source = [0.9, 0.1, 0.5 + near, 0.5 - near, 0.52]
    found = compare(*(list(map(chances, column)) for column in (source, [0.8, 0.2, 0.4, 0.5 - near, 0.49])))
    assert (found.states, found.differing, found.differing_near_coin) == (5, 1, 1)
    assert found.largest_difference == pytest.approx(0.1 + near)
    broken = compare([chances(0.9), chances(0.5)], [None, chances(0.5)])
    assert (broken.differing, broken.largest_difference) == (1, None)
    three = {"0": 0.4, "2": 0.35, "6": 0.25}
    assert compare([three], [three | {"0": 0.3, "6": 0.35}]).differing == 1
    level = {"0": 0.398, "2": 0.402, "6": 0.2}
    assert compare([level], [{"0": 0.402, "2": 0.398, "6": 0.2}]).differing_near_coin == 1


@pytest.mark.parametrize("fmt", ["merged_16bit", "gguf", "adapter"])
def test_an_export_that_decides_otherwise_is_not_finished(
    fmt: str,
    lora_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writer = {"merged_16bit": "save_merged", "gguf": "write_gguf", "adapter": "save_tokenizer"}[fmt]
    write = getattr(module, writer)

    def corrupt(first: Any, second: Any, folder: Path, *rest: Any, **named: Any) -> None:
        first.model.norm.weight.mul_(-1)  # turns every decision around
        write(first, second, folder, *rest, **named)

    def corrupt_adapter(tokenizer: Any, folder: Path, taught: PromptFormat | None) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "adapter_model.safetensors")
        wrong = {name: -20 * weight if "lora_B" in name else weight for name, weight in weights.items()}
        save_file(wrong, folder / "adapter_model.safetensors")
        write(tokenizer, folder, taught)

    monkeypatch.setattr(module, writer, corrupt_adapter if fmt == "adapter" else corrupt)
    argv = [
        "export",
        "--model-path",
        str(lora_model),
        "--format",
        fmt,
        "--output-dir",
        str(tmp_path / "out"),
        "--validation-rows",
        "30",
    ]
    assert guarded(main, argv) == UnreliableError.exit_code == 3
    seen = capsys.readouterr()
    assert seen.out == "" and names(tmp_path / "out") == {"run.json"}
    last = seen.err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'out'}: the exported model decides otherwise than {lora_model} on")
    monkeypatch.undo()
    assert guarded(main, argv) == 0  # mended: the same command goes through
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'out'}\n"
    *_, made, where, good, then = shown.err.splitlines()
    assert made.startswith(f"export: {lora_model} as {fmt}, ") and where == f"  where: {tmp_path / 'out'}"
    assert good == "  how good: 0 of 30 decisions differ from the model's own"
    drive = f"grpo evaluate YOUR.sumocfg --policy fixed_time actuated {tmp_path / 'out'}"
    assert then == f"  next: {drive if fmt == 'merged_16bit' else f'cat {tmp_path}/out/README.md    how to load it'}"
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_differing_decisions_may_be_allowed(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compare", lambda *given, **named: replace(compare(*given, **named), differing=2))
    with pytest.raises(UnreliableError, match="on 2 of 24 states, max_differing is 1"):
        export(config(random_model, tmp_path / "one", max_differing=1))
    folder = export(config(random_model, tmp_path / "two", max_differing=2))
    assert "2 decisions differ" in (folder / "README.md").read_text()


def test_a_model_that_does_not_decide(random_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_for_inference(str(random_model), "cpu")
    save_merged(model, tokenizer, tmp_path / "m", prompt_format=FORMAT)
    model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        save_merged(model, tokenizer, tmp_path / "again", prompt_format=FORMAT)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="not finite"):
        export(config(tmp_path / "m", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# The folder


def test_a_killed_export_can_be_told_from_a_finished_one(
    lora_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(part: Path, folder: Path) -> None:
        shutil.copyfile(part / "README.md", folder / "README.md")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "publish", die)
    settings = config(lora_model, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        export(settings)
    assert names(tmp_path / "out") == {"run.json", "README.md"}
    with pytest.raises(ModelError):
        resolve_model(str(tmp_path / "out"))
    monkeypatch.undo()
    assert (export(settings) / "manifest.json").is_file()
    with pytest.raises(OutputError, match="finished run"):
        export(settings)
    moved = replace(settings, format="gguf", if_finished="move_aside")
    assert "model.gguf" in names(export(moved)) and "model.safetensors" in names(tmp_path / "out.1")


def test_what_is_refused_leaves_nothing_behind(random_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="no such model folder"):
        export(config(tmp_path / "absent", out))
    with pytest.raises(DataError, match="no such dataset"):
        export(config(random_model, out, dataset_path=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match="is also model_path"):
        export(config(random_model, random_model))
    assert not out.exists()


def test_recorded_states_are_taken_where_they_are(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert module._states(config(random_model, tmp_path), "cycle")[1] == "random, seed 42"
    write_dataset(tmp_path / "data" / "grpo_datasets", tiny_rows(30))
    states, origin = module._states(config(random_model, tmp_path), "cycle")
    assert (len(states), origin) == (24, "data/grpo_datasets")
    assert states == module._states(config(random_model, tmp_path), "cycle")[0]
    assert module._states(config(random_model, tmp_path, dataset_path="random"), "cycle")[1] == "random, seed 42"


# The card


def test_the_card_says_what_the_model_is(lora_model: Path, random_model: Path, tmp_path: Path) -> None:
    text = (export(config(lora_model, tmp_path / "controller")) / "README.md").read_text()
    assert "# controller\n" in text
    assert f"base model: `{random_model}`" in text and f"exported from: `{lora_model}`" in text
    assert "license: that of the model it was made from" in text and "apache" not in text
    assert "Prompt language: zh." in text
    for field in FORMAT.fields:
        assert f"- `{field}`: {PHASE_FIELDS[field]['en']}" in text
    assert "| agreement | 0.875 |" in text and "| lora_rank | 4 |" in text
    assert '{"extend": "yes"}' in text and "0 decisions differ" in text
    assert "keeps no signal constraint" in text


def test_the_card_of_a_chain_of_trainings(lora_model: Path, random_model: Path, tmp_path: Path) -> None:
    second = trained_on(lora_model, tmp_path / "second")
    text = (export(config(second, tmp_path / "out")) / "README.md").read_text()
    assert text.index(f"grpo sft from `{lora_model}`") < text.index(f"grpo sft from `{random_model}`")
    shipped = (export(config("pretrained", tmp_path / "shipped")) / "README.md").read_text()
    assert "license: apache-2.0" in shipped and "| best_step | 90 |" in shipped
