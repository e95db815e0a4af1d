"""Where models come from, how they are loaded, merged, saved and refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.tiny import tiny_rows, write_dataset

from grpo.config import GRPOTrainingConfig, SFTTrainingConfig
from grpo.inputs import inputs_of
from grpo.learning.checkpoints import checkpoint_to_resume, newest_checkpoint
from grpo.models import loading as module
from grpo.models.folder import SHIPPED, action_set_of, prompt_format_of, resolve_model
from grpo.models.loading import (
    choose_backend,
    choose_optimizer,
    load_for_inference,
    load_for_training,
)
from grpo.models.saving import save_merged
from grpo.policies.torch_scorer import make_policy
from grpo.prompt_builder import PromptFormat, build_messages
from grpo.records import ActionSet
from grpo.system.errors import ConfigError, ModelError, OutputError
from grpo.system.files import disk_errors


def logits(model: Any, tokenizer: Any) -> Any:
    import torch

    prompts = [build_messages(row.prompt) for row in tiny_rows(8, seed=3)]
    batch = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Which model


def test_hub_ids_are_left_as_they_are(here: Path) -> None:
    assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    "path",
    ["model/sft_model", "export/new", "./x/y", "~/no_such/model", "/no/such/model", "one", "a/b/c", "mine/new", "../m"],
)
def test_an_absent_folder_names_the_command_that_makes_it(here: Path, path: str) -> None:
    (here / "mine").mkdir()  # so that mine/new can only be a folder
    with pytest.raises(ModelError, match=r"no such model folder.*`grpo sft`") as caught:
        resolve_model(path, made_by="grpo sft")
    assert "\n" not in str(caught.value)


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(here: Path) -> None:
    folder = here / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert Path(resolve_model("org/name")).resolve() == folder.resolve()


def test_a_folder_without_a_model_and_a_file_are_refused(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(ModelError, match=r"neither config\.json nor adapter_config\.json"):
        resolve_model("empty")
    (here / "file.bin").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        resolve_model("file.bin")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_missing_shipped_model_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(resolve_model(name)) == SHIPPED[name]
    monkeypatch.setitem(SHIPPED, name, tmp_path)
    with pytest.raises(ModelError, match="make pretrained"):
        resolve_model(name)


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_a_shipped_name_stands_for_a_model_of_each_action_set(
    action_set: ActionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.models.folder._SHIPPED", tmp_path)
    for name in SHIPPED:
        command = f"`grpo base-model --action-set {action_set} --output-dir model/base_{action_set}`"
        with pytest.raises(ModelError, match=f"^{name}: no such model is shipped for .* {action_set} yet; .*{command}"):
            resolve_model(name, action_set)
        assert action_set_of(name) is None
        folder = tmp_path / f"{name}-{action_set}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        assert resolve_model(name, action_set) == str(folder)
        assert resolve_model(name) == str(SHIPPED[name])


def test_what_a_shipped_name_reads_is_what_it_can_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.models.folder._SHIPPED", tmp_path / "shipped")
    write_dataset(tmp_path / "data", tiny_rows(2))
    config = GRPOTrainingConfig(model_path="base", dataset_path=str(tmp_path / "data"))
    before = inputs_of(config)
    assert before == inputs_of(replace(config, action_set="cycle"))
    folder = tmp_path / "shipped" / "base-choose"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert inputs_of(config)["model_path"] != before["model_path"]  # the rows say which one it is
    assert inputs_of(replace(config, action_set="cycle")) == before
    assert inputs_of(replace(config, action_set="choose"))["model_path"] != before["model_path"]


# Which backend


def test_backend_and_optimizer_without_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_has_gpu", lambda: False)
    assert choose_backend("auto", "org/name") == "transformers"
    with pytest.raises(ModelError, match="needs a CUDA GPU"):
        choose_backend("unsloth", "org/name")
    assert choose_optimizer("adamw_8bit") == "adamw_torch"
    assert len(caplog.records) == 1 and "adamw_torch" in caplog.text
    assert choose_optimizer("sgd") == "sgd"
    with pytest.raises(ConfigError, match="unknown optimizer 'adamm'"):
        choose_optimizer("adamm")


def test_backend_with_a_gpu_but_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_gpu", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert choose_backend("auto", "org/name") == "transformers"
    with pytest.raises(ModelError, match="package unsloth"):
        choose_backend("unsloth", "org/name")


def test_a_small_model_is_left_to_transformers_and_fp32(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_gpu", lambda: True)
    monkeypatch.setattr(module, "_gpu_has_bf16", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    assert choose_backend("auto", str(random_model)) == "transformers"
    model = module._load_causal_lm(str(random_model), half=False)
    assert module.precision_arguments(model) == {"use_cpu": False, "bf16": False, "fp16": False}
    monkeypatch.setattr(module, "_SMALL", 1)
    assert not module._is_small(str(random_model))
    assert module.precision_arguments(model)["bf16"]


def test_a_broken_unsloth_ends_only_the_run_that_asked_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "unsloth.py").write_text("print('banner')\nraise RuntimeError('wants another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "_has_gpu", lambda: True)
    assert choose_backend("auto", "org/name") == "transformers" and "wants another torch" in caplog.text
    with pytest.raises(ModelError, match="wants another torch"):
        choose_backend("unsloth", "org/name")
    assert capsys.readouterr().out == ""  # stdout is for data


# Training: in full, or with LoRA


def test_small_models_train_in_full(random_model: Path) -> None:
    loaded = load_for_training(SFTTrainingConfig(model_path=str(random_model)))
    assert not hasattr(loaded.model, "peft_config")
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "right"


@pytest.mark.parametrize(("rank", "below", "lora"), [(4, 0, True), (0, 0, False), (4, 10**9, False)])
def test_lora_is_attached_from_the_given_size_on(random_model: Path, rank: int, below: int, lora: bool) -> None:
    config = GRPOTrainingConfig(model_path=str(random_model), lora_rank=rank, lora_min_parameters=below)
    assert hasattr(load_for_training(config).model, "peft_config") is lora


@pytest.mark.parametrize("use", ["training", "inference"])
def test_attention_that_plans_every_shape_is_off(random_model: Path, use: str) -> None:
    from torch.backends import cuda

    cuda.enable_cudnn_sdp(True)
    if use == "training":
        load_for_training(SFTTrainingConfig(model_path=str(random_model)))
    else:
        load_for_inference(str(random_model))
    assert not cuda.cudnn_sdp_enabled()
    assert cuda.flash_sdp_enabled()


def test_lora_modules_that_the_model_has_not(random_model: Path) -> None:
    config = SFTTrainingConfig(model_path=str(random_model), lora_min_parameters=0, lora_target_modules=["nothing"])
    with pytest.raises(ModelError, match="lora_target_modules"):
        load_for_training(config)


def test_merged_model_equals_adapter_and_adapter_folder(random_model: Path, tmp_path: Path) -> None:
    """Saved merged, loaded from the adapter folder, or trained on from it: one and the same policy."""
    import torch

    settings: dict[str, Any] = {
        "lora_rank": 4,
        "lora_min_parameters": 0,
        "lora_target_modules": ["q_proj", "down_proj"],
    }
    loaded = load_for_training(SFTTrainingConfig(model_path=str(random_model), **settings))
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trained = logits(loaded.model, loaded.tokenizer)
    save_merged(loaded.model, loaded.tokenizer, tmp_path / "merged", prompt_format=PromptFormat("zh"))
    assert torch.equal(logits(loaded.model, loaded.tokenizer), trained)  # saving left the model as it was
    assert prompt_format_of(tmp_path / "merged") == PromptFormat("zh")
    assert prompt_format_of(random_model) is None

    loaded.model.save_pretrained(tmp_path / "adapter")
    loaded.tokenizer.save_pretrained(tmp_path / "adapter")
    again = load_for_training(SFTTrainingConfig(model_path=str(tmp_path / "adapter"), **settings))
    others = [
        load_for_inference(str(tmp_path / "merged")),
        load_for_inference(str(tmp_path / "adapter")),
        (again.model, again.tokenizer),  # its fresh adapters begin at zero
    ]
    start = logits(*load_for_inference(str(random_model)))
    assert (start - trained).abs().max() > 0.1
    for model, tokenizer in others:
        got = logits(model, tokenizer)
        assert torch.allclose(got, trained, atol=1e-4)
        assert torch.equal(got[:, -1].argmax(-1), trained[:, -1].argmax(-1))


def test_sixteen_bit_weights_are_summed_before_they_are_rounded(random_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    loaded = load_for_training(SFTTrainingConfig(model_path=str(random_model), lora_rank=2, lora_min_parameters=0))
    loaded.model.to(torch.bfloat16)
    save_merged(loaded.model, loaded.tokenizer, tmp_path / "m", prompt_format=PromptFormat())
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not any("lora" in name or "base_layer" in name for name in weights)


# Saving


def test_a_killed_save_is_not_a_model(random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_for_inference(str(random_model))
    folder = tmp_path / "m"
    save_merged(model, tokenizer, folder, prompt_format=PromptFormat())
    names = {file.name for file in folder.iterdir()}
    replace, moved = os.replace, []

    def replace_or_die(source: Path, target: Path) -> None:
        if Path(source).parent.name.endswith(".scu-tsc"):
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("grpo.models.saving.os.replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt):
        save_merged(model, tokenizer, folder, prompt_format=PromptFormat())
    with pytest.raises(ModelError):
        resolve_model(str(folder))
    monkeypatch.undo()
    save_merged(model, tokenizer, folder, prompt_format=PromptFormat())
    assert {file.name for file in folder.iterdir()} == names
    assert resolve_model(str(folder)) == str(folder)


def test_a_tokenizer_that_comes_back_different_is_refused(random_model: Path, tmp_path: Path) -> None:
    """A word tokenizer under model_type qwen2 is replaced by transformers without a word; here it is an error."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = load_for_inference(str(random_model))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "17": 1, '"': 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    custom = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token='"', pad_token='"')
    custom.chat_template = tokenizer.chat_template
    with pytest.raises(ModelError, match="tokens"):
        save_merged(model, custom, tmp_path / "m", prompt_format=PromptFormat())
    assert not (tmp_path / "m" / "config.json").exists()
    model.save_pretrained(tmp_path / "by_hand")
    custom.save_pretrained(tmp_path / "by_hand")
    with pytest.raises(ModelError, match=r"cannot be loaded|replaced the tokenizer"):
        load_for_inference(str(tmp_path / "by_hand"))


# What cannot be loaded


def broken(random_model: Path, folder: Path, name: str, text: str) -> str:
    shutil.copytree(random_model, folder)
    (folder / name).write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{not json"),
        ("config.json", '{"model_type": "no_such_type"}'),
        ("model.safetensors", "short"),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_broken_folder_is_one_line(random_model: Path, tmp_path: Path, name: str, text: str) -> None:
    path = broken(random_model, tmp_path / "m", name, text)
    with pytest.raises(ModelError, match=r"cannot be loaded|is cut short or damaged") as caught:
        load_for_training(SFTTrainingConfig(model_path=path))
    assert "\n" not in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize("path", ["small", "large"])  # in numpy and by transformers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no tokenizer", r"m: holds no tokenizer\.json; save the tokenizer beside"),
        ("cut weights", r"model\.safetensors: is cut short or damaged"),
        ("more layers", r"m: .*(config\.json.*layers\.\d\.|layers\.\d\..*config\.json)"),
        ("far more layers", r"m: .*(is absent|26 weights, by config\.json 100 layers)"),
        ("wider", r"m: .*config\.json.*, 96\)"),
        ("link to nowhere", r"m/tokenizer_config\.json: is no file"),
        ("folder", r"m/tokenizer_config\.json: is no file"),
        ("pipe", r"m/tokenizer_config\.json: is no file"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(
    random_model: Path, tmp_path: Path, path: str, change: str, message: str
) -> None:
    folder = Path(shutil.copytree(SHIPPED["base"] if path == "small" else random_model, tmp_path / "m"))
    odd, weights = folder / "tokenizer_config.json", folder / "model.safetensors"
    settings = json.loads((folder / "config.json").read_text())
    shapes = {"more layers": {"num_hidden_layers": 9}, "wider": {"hidden_size": 96}}
    shapes["far more layers"] = {"num_hidden_layers": 100}
    if change == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif change == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change in shapes:
        (folder / "config.json").write_text(json.dumps({**settings, "layer_types": None, **shapes[change]}))
    else:
        odd.unlink()
        {"link to nowhere": lambda: odd.symlink_to("nowhere"), "folder": odd.mkdir, "pipe": lambda: os.mkfifo(odd)}[
            change
        ]()
    with pytest.raises(ModelError, match=message) as caught:
        make_policy(str(folder), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "ran past its deadline"),
        ("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}", "9,989,001 characters"),
        ("{% set n = namespace(x='x' * 9) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
         "MemoryError"),
        ("{{ raise_exception('no user\nhere') }}", "no user"),
    ],
)  # fmt: skip
def test_a_chat_template_that_makes_no_prompt_is_refused(
    random_model: Path, tmp_path: Path, template: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.models.tokenizer._TEMPLATE_BYTES", 1 << 28)
    if "deadline" in cause:
        monkeypatch.setattr("grpo.models.tokenizer._TEMPLATE_S", 1)
    path = broken(random_model, tmp_path / "m", "chat_template.jinja", template)
    with pytest.raises(ModelError, match=f"m: its chat template cannot be used .*{cause}") as caught:
        load_for_inference(path)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_never_run(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where transformers would ask, and stdin says yes."""
    folder = Path(broken(random_model, tmp_path / "m", "own.py", f"open({str(tmp_path / 'ran')!r}, 'w')"))
    settings = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (load_for_inference, lambda path: load_for_training(SFTTrainingConfig(model_path=path))):
        with pytest.raises(ModelError, match="needs code of its own, which is never run") as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_hub_that_cannot_be_reached_is_asked_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try five times for each of some files, a minute in all."""
    asked: list[str] = []

    def unreachable(_: Any, model: str, *, timeout: float) -> None:
        asked.append(model)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    module._hub_has.cache_clear()
    for _ in range(2):
        with pytest.raises(ModelError, match=r"cannot be fetched from the hub .*check the name and the network"):
            load_for_inference("no-such-org/unreachable")
    assert asked == ["no-such-org/unreachable"]


def test_a_hub_that_cannot_be_reached_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="local folder or one of base, pretrained") as caught:
        load_for_inference("no-such-org/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_model_without_chat_template_is_refused(random_model: Path, tmp_path: Path) -> None:
    path = broken(random_model, tmp_path / "m", "chat_template.jinja", "")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_for_inference(path)


# Checkpoints


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        (path / name).write_bytes(b"x")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_newest_complete_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    nine, ten, eleven = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10), checkpoint(tmp_path, 11)
    (eleven / "trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-12").mkdir()
    assert newest_checkpoint(tmp_path) == ten
    (ten / "optimizer.pt").unlink()
    assert newest_checkpoint(tmp_path) == nine
    assert checkpoint_to_resume("auto", tmp_path, interrupted=True) == nine
    assert checkpoint_to_resume("auto", tmp_path, interrupted=False) is None
    assert checkpoint_to_resume("never", tmp_path, interrupted=True) is None
    assert checkpoint_to_resume(str(nine), tmp_path, interrupted=False) == nine
    for wrong in (str(ten), str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(ModelError, match="resume_from_checkpoint"):
            checkpoint_to_resume(wrong, tmp_path, interrupted=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
    ],
)
def test_a_full_disk_is_one_line(error: Exception) -> None:
    with pytest.raises(OutputError, match="free the disk"), disk_errors("out"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ModelError("a line of its own")])
def test_other_errors_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors("out"):
        raise error
    assert caught.value is error and not isinstance(caught.value, OutputError)


def test_liger_computes_norms_and_gates_of_a_large_model(monkeypatch: pytest.MonkeyPatch, random_model: Path) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", lambda _, kernels: asked.append(kernels))
    monkeypatch.setattr(module, "find_spec", lambda name: name == "liger_kernel")
    module._load_causal_lm(str(random_model), half=False)
    assert not asked
    module._load_causal_lm(str(random_model), half=True)
    assert asked == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))  # has kernels of its own
    module._load_causal_lm(str(random_model), half=True)
    assert len(asked) == 1
