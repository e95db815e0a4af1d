"""What a policy is called: its name and, behind an ``@``, the action set that it decides in; whether there is one."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..models.folder import SHIPPED, is_local, prompt_format_of, resolve_model
from ..prompt_builder import ACTION_SETS
from ..records import ActionSet
from ..system.errors import ConfigError, ModelError
from .rules import BASELINES, PROGRAM_POLICIES


def bare_name(policy: str) -> str:
    """The policy without its action set: ``gap_out`` of ``gap_out@skip``."""
    name, _, found = policy.rpartition("@")
    return name if found in ACTION_SETS else policy


def own_action_set(policy: str) -> ActionSet | None:
    """The action set that a policy's name carries; ``None`` where that of the run holds."""
    found = policy.rpartition("@")[2]
    return next((one for one in ACTION_SETS if one == found and policy != found), None)


def is_model(policy: str) -> bool:
    """Whether it is a language model: none of the baselines, in whatever action set."""
    return bare_name(policy) not in BASELINES


def check_policy(policy: str, action_set: ActionSet) -> None:
    """Raise :class:`GrpoError` where the policy is none that there is, or none that decides in the action set."""
    name = bare_name(policy)
    if name in PROGRAM_POLICIES and name != policy:
        raise ConfigError([f"policy: '{policy}': signal programs run as they are, in no action set; name it {name}"])
    if name in BASELINES:
        return
    _check_model(policy, name, action_set)
    taught = prompt_format_of(resolve_model(name, action_set))
    if taught is not None and taught.action_set != action_set:
        own = taught.action_set
        raise ModelError(
            f"policy: '{policy}' was taught the action set {own}, not {action_set}; "
            f"name it {name}@{own}, or give a model of {action_set}"
        )


def _check_model(policy: str, name: str, action_set: ActionSet) -> None:
    """Raise :class:`GrpoError` where there is no such model; ``name`` is the policy without its action set."""
    before, _, after = policy.rpartition("@")
    known = before in (*BASELINES, *SHIPPED) or (bool(before) and Path(before).is_dir())
    if known and name == policy and not Path(policy).exists():
        raise ConfigError([f"policy: '{policy}': no action set '{after}'; there are {', '.join(ACTION_SETS)}"])
    if policy.endswith((".sumocfg", ".xml")):
        raise ConfigError([f"policy: '{policy}' is a scenario; name it before the flags: grpo evaluate {policy}"])
    if name not in SHIPPED and "/" not in name and not Path(name).is_dir():
        near = difflib.get_close_matches(name, (*BASELINES, *SHIPPED), n=1, cutoff=0.7)
        hint = f"did you mean '{near[0]}'?" if near else f"give {', '.join((*BASELINES, *SHIPPED))} or a model folder"
        raise ConfigError([f"policy: no policy '{policy}'; {hint}"])
    if not is_local(resolve_model(name, action_set, made_by="grpo train")):
        raise ModelError(f"{name}: no such model folder; make it with `grpo train`, or give a downloaded one")
