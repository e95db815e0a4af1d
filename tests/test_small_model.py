"""Small models in numpy: the same numbers as transformers' and as the torch policy's, without either of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import overflowing

from grpo.models.folder import BASE, PRETRAINED, SHIPPED
from grpo.models.numpy_qwen2 import CHAT_TEMPLATE, SmallModel, chat_text, fits
from grpo.models.random_states import draw_states
from grpo.policies.language_model import LanguageModelPolicy, light_policy, small_policy
from grpo.policies.torch_scorer import make_policy
from grpo.prompt_builder import ANSWERS, build_messages, question
from grpo.records import ACTIONS
from grpo.system.errors import ModelError

SHAPES = {
    "one layer": {},
    "four layers": {"num_hidden_layers": 4},
    "grouped heads": {"num_hidden_layers": 2, "num_key_value_heads": 2},
    "one key for all heads": {"num_hidden_layers": 4, "num_key_value_heads": 1},
    "a head of its own": {"num_hidden_layers": 2, "tie_word_embeddings": False},
    "another base of rotation": {"rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}},
    "large epsilon": {"num_hidden_layers": 2, "rms_norm_eps": 1e-2},
}


NO_SIZES = (
    b'{"model_type":"qwen2","hidden_act":"silu","dtype":"float32","use_sliding_window":false,'
    b'"rope_parameters":{"rope_type":"default"}}'
)
"""A config that says what kind of model it is and nothing of its shape."""


def shipped_copy(folder: Path, name: str = BASE) -> Path:
    """A copy of a shipped model that a test may break."""
    return Path(shutil.copytree(SHIPPED[name], folder))


def save_random(folder: Path, **shape: Any) -> Any:
    """A random Qwen2 with large weights, beside the shipped tokenizer; returns it as transformers runs it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    sizes |= {"num_key_value_heads": 4, "vocab_size": 1500, "tie_word_embeddings": True, "initializer_range": 0.3}
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**(sizes | shape)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # ones and zeros would hide how they are used
                weight.uniform_(0.5, 1.5)
    shipped_copy(folder)
    model.save_pretrained(folder)
    return model.eval()


# ---------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_transformers(shape: dict[str, Any], tmp_path: Path) -> None:
    import torch

    model = save_random(tmp_path / "model", **shape)
    assert fits(tmp_path / "model")
    small = SmallModel(tmp_path / "model")
    rng = np.random.default_rng(1)
    wanted = (3, 1499, 700)
    for length in (1, 2, 60, 130, 7):  # the table of rotations grows on the way
        ids = rng.integers(0, 1500, length).tolist()
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, -1, list(wanted)].numpy()
        given = small.logits(ids, wanted)
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, expected, atol=1e-4 * max(1.0, np.abs(expected).max()), rtol=0)


def test_chat_text_is_what_the_template_makes() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED[BASE])
    assert tokenizer.chat_template == CHAT_TEMPLATE
    (message,) = build_messages('{"crossing_id":"Königstraße 中"}')
    expected = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    assert chat_text(message["content"]) == expected
    assert SmallModel(SHIPPED[BASE]).encode(expected) == tokenizer(expected)["input_ids"]


# ---------------------------------------------------------------------- the policy


@pytest.mark.parametrize("name", SHIPPED)
def test_decisions_are_those_of_the_torch_policy(name: str) -> None:
    states = draw_states(np.random.default_rng(11), 60)
    small, torch = (make_policy(name, seed=0, device=device) for device in ("auto", "cpu"))
    assert isinstance(small, LanguageModelPolicy) and isinstance(torch, LanguageModelPolicy)
    found, expected = (
        [[*one.values()] for one in policy.probabilities(states) if one is not None] for policy in (small, torch)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    mine, theirs = small.decide(states), torch.decide(states)
    assert [decision.action for decision in mine] == [decision.action for decision in theirs]
    assert {decision.action for decision in mine} == set(ACTIONS)
    assert small.fallbacks == torch.fallbacks == 0
    assert small.prompt_format == torch.prompt_format
    assert small.decide(states) == mine
    assert [decision for state in states[:5] for decision in small.decide([state])] == mine[:5]
    assert small.decide([]) == []


def test_answers_part_where_the_model_is_read() -> None:
    model = SmallModel(SHIPPED[PRETRAINED])
    policy = small_policy(str(SHIPPED[PRETRAINED]))
    assert policy is not None
    (state,) = draw_states(np.random.default_rng(0), 1)
    prompt = chat_text(question(state, policy.prompt_format))
    yes, no = (model.encode(prompt + ANSWERS["cycle"][action]) for action in ACTIONS)
    (place,) = [i for i, (a, b) in enumerate(zip(yes, no, strict=True)) if a != b]
    logits = model.logits(yes[:place], (yes[place], no[place]))
    (chances,) = policy.probabilities([state])
    assert chances is not None
    assert chances["yes"] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), abs=1e-6)


def test_logits_that_are_not_numbers_leave_the_decision_to_the_rule(tmp_path: Path) -> None:
    folder = overflowing(SHIPPED[BASE], tmp_path / "model")
    policy = small_policy(str(folder))
    assert policy is not None
    states = draw_states(np.random.default_rng(2), 4)
    assert policy.decide(states) == light_policy("delay_balance", seed=0).decide(states)
    assert policy.fallbacks == 4


def test_a_process_that_decides_holds_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from grpo.policies.language_model import light_policy\n"
        "from grpo.models.random_states import draw_states\n"
        "decisions = light_policy('pretrained', seed=0).decide(draw_states(np.random.default_rng(0), 5))\n"
        "assert len(decisions) == 5 and {decision.action for decision in decisions} <= {'yes', 'no'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'trl', 'libsumo'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_light_policy_is_loaded_once() -> None:
    assert light_policy(PRETRAINED, seed=0) is light_policy(PRETRAINED, seed=0)


# ---------------------------------------------------------------------- what it can run


def test_shipped_models_fit_and_are_small() -> None:
    for folder in SHIPPED.values():
        assert fits(folder)
        assert sum(file.stat().st_size for file in folder.rglob("*")) < 20_000_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {}),
        ("rope_parameters", None),
        ("dtype", "bfloat16"),
    ],
)
def test_another_model_does_not_fit(key: str, value: Any, tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert not fits(folder)
    assert small_policy(str(folder)) is None
    with pytest.raises(ModelError, match="too large to drive simulations"):
        light_policy(str(folder), seed=0)


def test_another_template_or_a_large_file_does_not_fit(tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "template")
    assert fits(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")
    assert not fits(folder)
    folder = shipped_copy(tmp_path / "large")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(64_000_001)  # a hole: takes no room
    assert not fits(folder)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "chat_template.jinja"])
def test_a_folder_without_one_of_its_files_does_not_fit(lost: str, tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "model")
    (folder / lost).unlink()
    assert not fits(folder)
    assert not fits(tmp_path / "absent")


@pytest.mark.parametrize("config", ["", "{", "[]", "null", '"qwen2"', "{}"])
def test_a_folder_whose_config_is_none_does_not_fit(config: str, tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "model")
    (folder / "config.json").write_text(config)
    assert not fits(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", None),
        ("config.json", NO_SIZES),
        ("scu_tsc.json", b'{"prompt_language":"en","prompt_fields":["length"]}'),
        ("scu_tsc.json", b"{"),
    ],
)
def test_a_broken_folder_is_one_line_that_names_it(file: str, content: bytes | None, tmp_path: Path) -> None:
    folder = shipped_copy(tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        small_policy(str(folder))
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message
    assert "again" in message


def test_a_model_without_one_of_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shipped_copy(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"another model than .*layers\.1\.mlp\.up_proj\.weight is absent, not \("):
        SmallModel(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 10**9, r"embed_tokens\.weight is \(\d+, \d+\), not \(\d+, 1000000000\)"),
        ("head_dim", 2 * 10**9, r"q_proj\.weight is "),
        ("num_hidden_layers", 10**9, r"layers\.\d\.self_attn\.q_proj\.weight is absent"),
        ("num_hidden_layers", 1, r"it has no model\.layers\.1\."),
    ],
)
def test_a_config_of_another_shape_is_refused_before_anything_large_is_made(
    key: str, value: int, message: str, tmp_path: Path
) -> None:
    folder = shipped_copy(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=message) as caught:
        SmallModel(folder)
    assert "\n" not in str(caught.value)
