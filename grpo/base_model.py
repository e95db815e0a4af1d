"""Stage: build the small base model from random weights.

It learns from random junction states, rendered by the same ``build_prompt`` as real ones: first to answer
facts about a state (numbers it must find, add and compare), then the answer format and a rough prior of the
decision. It trains on no network and no simulation; those are for SFT and GRPO. Without the facts a model of
this size does not learn to compare numbers from decisions alone.

The defaults made the model in ``grpo/models/shipped/base`` (four minutes on a GPU; extrapolated from a few steps,
about an hour and a half on two CPU cores). The same seed gives the same bytes on a CPU, not across devices.

    grpo base-model --output-dir model/base_model
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .config import PromptFieldSettings, RunSettings
from .models.answer_tokens import chat_ids, encode
from .models.loading import check_training_stack
from .models.random_states import draw_states, facts, prior
from .models.saving import save_merged
from .models.tokenizer import build_tokenizer
from .prompt_builder import PromptFormat, answers_of, ask, build_prompt, parse_answer, words_of
from .records import MOST_CHOICES, ActionSet, Observation, likeliest
from .system.command_line import parse_config
from .system.console import clock, finished, say
from .system.errors import ModelError
from .system.run_folder import claim_output, write_manifest
from .system.settings import STRICT, refuse


@dataclass(frozen=True, config=STRICT)
class BaseModelConfig(PromptFieldSettings, RunSettings):
    """Settings of `grpo base-model`: the small base model, from random weights."""

    STAGE: ClassVar[str] = "base-model"
    output_dir: str = Field(default="model/base_model", min_length=1, description="folder of the base model")
    action_set: ActionSet = Field(
        default="cycle",
        description="what the model decides: whether a green goes on (`cycle`, `skip`) or which is next (`choose`)",
    )
    hidden_size: int = Field(default=64, ge=32, multiple_of=32, description="width; one attention head for every 32")
    intermediate_size: int = Field(default=192, ge=32, description="width of the feed-forward layers")
    layers: int = Field(default=4, ge=1, description="transformer layers")
    fact_steps: int = Field(default=4000, ge=1, description="steps that learn to answer facts about random states")
    decision_steps: int = Field(
        default=2000, ge=1, description="steps that learn the answer format and a rough prior, facts kept alive"
    )
    batch_size: int = Field(default=128, ge=2, multiple_of=2, description="random states in one step")
    learning_rate: float = Field(default=3e-3, gt=0, lt=1, description="peak learning rate of both parts")
    validation_rows: int = Field(default=2048, ge=16, description="fresh states on which the result is measured")

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(formats_of(self)[0].problems())
        return self


def formats_of(config: BaseModelConfig) -> tuple[PromptFormat, PromptFormat]:
    """The two forms of prompts that the model learns: English and Chinese."""
    fields = tuple(config.prompt_fields)
    return PromptFormat("en", fields, config.action_set), PromptFormat("zh", fields, config.action_set)


FACTS_PROMPT = "Report what is asked about the junction.\n"
_OF_NUMBER = re.compile(r".*_of_(\d)=")
IGNORED = -100
HEAD_SIZE = 32


def _fact_word(name: str) -> str:
    return f" {name}="


def fact_words(fields: Sequence[str], action_set: ActionSet = "cycle") -> list[str]:
    """The names of the facts as they stand in an answer, and the instruction that asks for them."""
    (state,) = draw_states(np.random.default_rng(0), 1, action_set)
    if action_set == "choose":  # as many phases as there can be, and who waits for all of them
        phase = replace(next(iter(state.phase_metrics.values())), called=1)
        order = tuple(map(str, range(MOST_CHOICES)))
        state = replace(
            state, phase_order=order, current_phase_id="0", phase_metrics=dict.fromkeys(order, phase), choices=order
        )
    return [FACTS_PROMPT, *map(_fact_word, facts(state, fields))]


Example = tuple[list[dict[str, str]], dict[str, float]]
"""Messages, and the probability of each possible answer; the first one is read on."""


def fact_example(observation: Observation, rng: np.random.Generator, fields: Sequence[str], asked: int = 16) -> Example:
    """Facts in random order, so that each is found by its name and not by its place."""
    values = list(facts(observation, fields).items())
    chosen = [values[i] for i in rng.permutation(len(values))[:asked]]
    answer = "".join(f"{_fact_word(name)}{value}" for name, value in chosen)
    return [{"role": "user", "content": FACTS_PROMPT + build_prompt(observation, fields)}], {answer: 1.0}


def decision_example(
    observation: Observation, rng: np.random.Generator, prompt_formats: tuple[PromptFormat, PromptFormat]
) -> Example:
    """The decision under the prior, one in ten in the second form.

    The answer that is read on is drawn by the prior, so that the model sees how each of them ends.
    """
    prompt_format = prompt_formats[rng.random() < 0.1]
    exact, chances = answers_of(observation), prior(observation)
    drawn, mark = rng.random(), 0.0
    for read in chances:
        mark += chances[read]
        if drawn < mark:
            break
    others = [one for one in chances if one != read]
    return ask(observation, prompt_format), {exact[one]: chances[one] for one in (read, *others)}


def collate(tokenizer: Any, examples: list[Example], silent: Container[int]) -> dict[str, Any]:
    """A batch: tensors of the shape (examples, length), length that of the longest prompt with its answer.

    ``ids``: tokens, padded on the right. ``target``: the next token of the answer that is read on, ``IGNORED`` at
    positions that teach nothing (the prompt, padding, the tokens in ``silent``). ``possible``: the next token of each
    possible answer, that one first; (examples, length, answers). ``weight``: their probabilities; (examples, answers).
    """
    import torch

    heads = chat_ids(tokenizer, [messages for messages, _ in examples])
    tails = [encode(tokenizer, [text + tokenizer.eos_token for text in answers]) for _, answers in examples]
    width = max(len(head) + len(tail[0]) for head, tail in zip(heads, tails, strict=True))
    ids = np.full((len(examples), width), tokenizer.pad_token_id)
    target = np.full((len(examples), width), IGNORED)
    possible = np.zeros((len(examples), width, max(map(len, tails))), dtype=int)
    weight = np.zeros((len(examples), possible.shape[2]), dtype=np.float32)
    for row, (head, tail, (_, answers)) in enumerate(zip(heads, tails, examples, strict=True)):
        start, end, answer = len(head), len(head) + len(tail[0]), tail[0]
        ids[row, :start], ids[row, start:end] = head, answer
        target[row, start - 1 : end - 1] = [IGNORED if token in silent else token for token in answer]
        possible[row, start - 1 : end - 1, : len(tail)] = np.transpose(tail)
        weight[row, : len(tail)] = [*answers.values()]
        weight[row, len(tail) - 1] = 1 - weight[row, : len(tail) - 1].sum()  # of the rounded numbers too the sum is 1
    return {
        "ids": torch.from_numpy(ids),
        "target": torch.from_numpy(target),
        "possible": torch.from_numpy(possible),
        "weight": torch.from_numpy(weight),
    }


class Batches:
    """Training batches by step number: a pure function of the seed, however many processes make them."""

    def __init__(self, tokenizer: Any, config: BaseModelConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.prompt_formats = formats_of(config)
        self.silent = set(tokenizer.convert_tokens_to_ids(fact_words(config.prompt_fields, config.action_set)))

    def __len__(self) -> int:
        return self.config.fact_steps + self.config.decision_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Facts alone at first, then decisions and facts half and half."""
        rng = np.random.default_rng([self.config.seed, step])
        states = draw_states(rng, self.config.batch_size, self.config.action_set)
        decisions = len(states) // 2 if step >= self.config.fact_steps else 0
        return collate(
            self.tokenizer,
            [decision_example(state, rng, self.prompt_formats) for state in states[:decisions]]
            + [fact_example(state, rng, self.config.prompt_fields) for state in states[decisions:]],
            self.silent,
        )


def build_model(config: BaseModelConfig, tokenizer: Any) -> Any:
    """A ``Qwen2ForCausalLM`` with two things built in that are slow to learn from scratch.

    Embeddings of number tokens lie on smooth curves, so that near numbers look alike; and one head of the
    first layer starts out attending to the previous token, so that a value knows its key.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    heads = config.hidden_size // HEAD_SIZE
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad():
        numbers = torch.arange(1000.0)
        quarter = config.hidden_size // 4
        waves = torch.arange(quarter) / quarter
        angles = numbers[:, None] * 2 * math.pi / (4 * 500**waves)
        curves = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
        rows = tokenizer.convert_tokens_to_ids([str(int(number)) for number in numbers])
        model.get_input_embeddings().weight[rows, : 2 * quarter] += 0.04 * curves
        for word in fact_words(config.prompt_fields, config.action_set):
            if found := _OF_NUMBER.fullmatch(word):  # the name says what is asked, and of which phase
                name, number = tokenizer.convert_tokens_to_ids([word, found[1]])
                model.get_input_embeddings().weight[name] += model.get_input_embeddings().weight[number]
        attention = model.model.layers[0].self_attn
        frequencies = model.model.rotary_emb.inv_freq
        strength = 5.0
        attention.k_proj.bias[: HEAD_SIZE // 2] = strength
        attention.q_proj.bias[: HEAD_SIZE // 2] = strength * torch.cos(frequencies)
        attention.q_proj.bias[HEAD_SIZE // 2 : HEAD_SIZE] = -strength * torch.sin(frequencies)
    return model


def train(model: Any, tokenizer: Any, config: BaseModelConfig) -> None:
    """Both parts, each with its own warm-up and cosine; progress goes to stderr."""
    import torch

    device = model.device
    batches = Batches(tokenizer, config)
    loader: Any = torch.utils.data.DataLoader(
        batches,  # type: ignore[arg-type]
        sampler=range(len(batches)),
        batch_size=None,
        num_workers=max(1, (os.cpu_count() or 1) // 2 - 1),
        prefetch_factor=8,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(loader):
        step_of_part, length = step, config.fact_steps
        if step >= config.fact_steps:
            step_of_part, length = step - config.fact_steps, config.decision_steps
        warm_up = min(1.0, (step_of_part + 1) / max(1, min(100, length // 10)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm_up * (0.51 + 0.49 * math.cos(math.pi * step_of_part / length))
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        loss = answer_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == len(batches):
            rate = (step + 1) / (time.monotonic() - started)
            remaining_s = (len(batches) - step - 1) / rate
            if not math.isfinite(loss.item()):
                raise ModelError(f"the loss is {loss.item():g} at step {step + 1}; lower learning_rate")
            say(f"base-model: step {step + 1}/{len(batches)}  loss {loss.item():.3f}  left {clock(remaining_s)}")
    model.eval()


def answer_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Cross-entropy, (), of the answers' tokens, every answer counting alike; where they part, against the prior.

    ``batch`` is what :func:`collate` returns.
    Causal attention keeps padding on the right from touching anything before it, so no mask is needed.
    """
    taught = batch["target"] != IGNORED  # T positions in all
    hidden = model.model(input_ids=batch["ids"]).last_hidden_state[taught]  # (T, width)
    scores = model.lm_head(hidden).float().log_softmax(-1)  # (T, vocabulary)
    weight = batch["weight"][:, None].expand_as(batch["possible"])[taught]  # (T, answers)
    expected = (weight * scores.gather(-1, batch["possible"][taught])).sum(-1)
    share = (1 / taught.sum(1, keepdim=True)).expand_as(taught)[taught] / len(taught)
    return -(share * expected).sum()


def measure(model: Any, tokenizer: Any, states: list[Observation], config: BaseModelConfig) -> dict[str, Any]:
    """What the model can do on fresh states; every figure is a share in [0, 1].

    ``facts``: exactly right, by fact. ``prior_agreement``: generated decisions that are the prior's, also weighted by
    how far the prior sets the best above the second best. ``valid_format``: generated answers that keep the format.
    """
    import torch

    rng = np.random.default_rng([config.seed, 1])
    prompt_formats = formats_of(config)
    words = fact_words(config.prompt_fields, config.action_set)[1:]
    names = {tokenizer.convert_tokens_to_ids(word): word.strip(" =") for word in words}
    right: dict[str, list[bool]] = {name: [] for name in names.values()}
    agree, clear, strict = [], [], []
    for start in range(0, len(states), 128):
        chunk = states[start : start + 128]
        batch = collate(tokenizer, [fact_example(state, rng, config.prompt_fields) for state in chunk], set(names))
        messages = [ask(state, prompt_formats[i % 10 == 9]) for i, state in enumerate(chunk)]
        prompts = tokenizer.pad({"input_ids": chat_ids(tokenizer, messages)}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            guesses = model(input_ids=batch["ids"].to(model.device), use_cache=False).logits.argmax(-1).cpu()
            answers = model.generate(**prompts.to(model.device), max_new_tokens=8, do_sample=False)
        for ids, target, guess in zip(batch["ids"].tolist(), batch["target"].tolist(), guesses.tolist(), strict=True):
            asked: list[bool] = []
            for token, wanted, given in zip(ids, target, guess, strict=True):
                if token in names:
                    asked = right[names[token]]
                    asked.append(True)
                if wanted not in (IGNORED, tokenizer.eos_token_id):
                    asked[-1] &= wanted == given
        written = tokenizer.batch_decode(answers[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for text, state in zip(written, chunk, strict=True):
            parsed, chances = parse_answer(text, action_set=config.action_set), prior(state)
            best, second, *_ = sorted(chances.values(), reverse=True)
            strict.append(parsed.level == "strict")
            agree.append(parsed.word == words_of(state)[likeliest(chances)])
            clear.append(best - second)
    return {
        "facts": {name: round(float(np.mean(hits)), 4) for name, hits in right.items() if hits},
        "prior_agreement": round(float(np.mean(agree)), 4),
        "prior_agreement_weighted": round(float(np.average(agree, weights=clear)), 4),
        "valid_format": round(float(np.mean(strict)), 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point of `grpo base-model`."""
    config = parse_config(BaseModelConfig, argv)
    folder = Path(config.output_dir)
    check_training_stack(config.STAGE)
    claim_output(folder, config.STAGE, config.to_dict(), if_finished=config.if_finished)
    import torch

    from .learning.progress import quiet_libraries

    quiet_libraries()
    started = time.monotonic()
    tokenizer = build_tokenizer(formats_of(config), fact_words(config.prompt_fields, config.action_set))
    model = build_model(config, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    train(model, tokenizer, config)
    minutes = (time.monotonic() - started) / 60
    save_merged(model, tokenizer, folder, prompt_format=formats_of(config)[0])
    states = draw_states(np.random.default_rng([config.seed, 0, 1]), config.validation_rows, config.action_set)
    measured = measure(model, tokenizer, states, config)
    parameters = sum(weights.numel() for weights in model.parameters())
    write_manifest(folder, config.STAGE, config.to_dict(), parameters=parameters, minutes=round(minutes, 1), **measured)
    print(json.dumps({"parameters": parameters, **measured}, indent=1))
    finished(
        config.STAGE,
        made=f"a model of {parameters:,} parameters",
        where=folder,
        seconds=time.monotonic() - started,
        good=f"valid format {measured['valid_format']:.1%}, agreement with the prior {measured['prior_agreement']:.1%}",
        then=[f"grpo sft --model-path {shlex.quote(config.output_dir)}"],
    )
    return 0
