"""Stage `grpo completion bash|zsh|fish`: a script with which a shell completes stages, flags, their choices and files.

    grpo completion bash > ~/.local/share/bash-completion/completions/grpo
    grpo completion zsh > ~/.zfunc/_grpo        (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)
    grpo completion fish > ~/.config/fish/completions/grpo.fish

The script holds all that it completes: pressing Tab starts no Python. Print it again after an update.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from .__main__ import STAGES
from .models.folder import SHIPPED
from .policies.rules import BASELINES, RULE_POLICIES
from .prompt_builder import PHASE_FIELDS
from .system.command_line import EXIT_CODES, FlagHelp, flags_of
from .system.errors import ConfigError
from .system.settings import StageConfig

_PROGRAMS = ("grpo", "scu-tsc")
_NAMES = {
    "--policy": (*BASELINES, *SHIPPED),
    "--rollout-policy": (*RULE_POLICIES, *SHIPPED),
    "--behaviour-policy": (*RULE_POLICIES, *SHIPPED),
    "--model-path": tuple(SHIPPED),
    "--prompt-fields": tuple(PHASE_FIELDS),
}
"""Names that a text may be, beside others: a folder mostly."""
_OWN_FLAGS = {"pipeline": (FlagHelp(("-q", "--quiet"), "no progress, notes and summaries on stderr"),)}
"""Flags of the stages that have no settings."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What can follow a stage: its words, and its flags with their choices."""

    name: str
    about: str
    flags: tuple[FlagHelp, ...]
    words: tuple[str, ...] = ()


def completed_stages() -> list[Completed]:
    """Every stage with its flags, from its settings."""
    found = []
    for name, (module, about) in STAGES.items():
        classes = [one for one in vars(import_module(f".{module}", __package__)).values() if _is_config_of(one, name)]
        flags = tuple(flags_of(classes[0])) if classes else _OWN_FLAGS.get(name, ())
        found.append(Completed(name, about, flags, tuple(SHELLS) if name == "completion" else ()))
    return [*found, Completed("help", "the flags of a stage", (), tuple(STAGES))]


def _is_config_of(value: object, stage: str) -> bool:
    return isinstance(value, type) and issubclass(value, StageConfig) and vars(value).get("STAGE") == stage


def _choices(flag: FlagHelp) -> tuple[str, ...]:
    return flag.choices or next((_NAMES[name] for name in flag.names if name in _NAMES), ())


def _values(stages: list[Completed]) -> list[tuple[str, str]]:
    """(pattern, words) for what stands in a shell as "STAGE FLAG NUMBER": the words that may be the next one.

    NUMBER counts the words behind the flag; a flag with many values takes any number, another one only the first.
    """
    patterns: dict[tuple[str, ...], list[str]] = {}
    for stage in stages:
        if stage.words:
            patterns.setdefault(stage.words, []).append(f'"{stage.name}  0"')
        for flag in stage.flags:
            for name in flag.names if _choices(flag) else ():
                patterns.setdefault(_choices(flag), []).append(f'"{stage.name} {name} "{"*" if flag.many else "0"}')
    return [(" | ".join(pattern), " ".join(words)) for words, pattern in patterns.items()]


def _bash(stages: list[Completed]) -> str:
    known = {one.name: " ".join(name for flag in one.flags for name in flag.names) for one in stages}
    flags = "\n".join(f'            {name}) words="{names}" ;;' for name, names in known.items())
    values = "\n".join(f'            {pattern}) words="{words}" ;;' for pattern, words in _values(stages))
    return f"""# bash completion of grpo, made by `grpo completion bash`
_grpo() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} stage=${{COMP_WORDS[1]-}} flag="" count=0 words="" word
    [[ $current == "=" ]] && current=""
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
        case $word in
            -*) flag=$word count=0 ;;
            =) ;;
            *) count=$((count + 1)) ;;
        esac
    done
    if ((COMP_CWORD == 1)); then
        words="{" ".join(one.name for one in stages)} --help --version"
    elif [[ $current == -* ]]; then
        case $stage in
{flags}
        esac
    else
        case "$stage $flag $count" in
{values}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _grpo {" ".join(_PROGRAMS)}"""


def _zsh(stages: list[Completed]) -> str:
    def described(pairs: list[tuple[str, str]]) -> str:
        return " ".join(_quoted(f"{name}:{about}") for name, about in pairs)

    known = {one.name: [(name, _short(flag)) for flag in one.flags for name in flag.names] for one in stages}
    flags = "\n".join(f"            {name}) found=({described(pairs)}) ;;" for name, pairs in known.items())
    values = "\n".join(f"        {pattern}) found=({words}) ;;" for pattern, words in _values(stages))
    return f"""#compdef {" ".join(_PROGRAMS)}
# zsh completion of grpo, made by `grpo completion zsh`
_grpo() {{
    local stage=$words[2] flag="" word
    local -i count=0
    local -a found
    if ((CURRENT == 2)); then
        found=({described([(one.name, one.about) for one in stages])})
        _describe -t stages stage found
        return
    fi
    for word in $words[3,CURRENT-1]; do
        if [[ $word == -* ]]; then flag=$word count=0; else count+=1; fi
    done
    if [[ $PREFIX == --*=* ]]; then
        flag=${{PREFIX%%=*}} count=0
        compset -P 1 "*="
    elif [[ $PREFIX == -* ]]; then
        case $stage in
{flags}
        esac
        _describe -o -t flags flag found
        return
    fi
    case "$stage $flag $count" in
{values}
    esac
    (($#found)) && compadd -a found
    _files
}}
if [[ $funcstack[1] == _grpo ]]; then _grpo "$@"; else compdef _grpo {" ".join(_PROGRAMS)}; fi"""


def _fish(stages: list[Completed]) -> str:
    lines = ["# fish completion of grpo, made by `grpo completion fish`", _FISH_AFTER]
    for program in _PROGRAMS:
        start = f"complete -c {program}"
        lines += [f"{start} -n __fish_use_subcommand -f -a {one.name} -d {_quoted(one.about)}" for one in stages]
        for one in stages:
            seen = f"{start} -n '__fish_seen_subcommand_from {one.name}'"
            lines += [f"{seen} -f -a {_quoted(' '.join(one.words))}"] if one.words else []
            for flag in one.flags:
                names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
                words = f" -a {_quoted(' '.join(_choices(flag)))}" if _choices(flag) else ""
                value = "" if not flag.value else " -x" if flag.choices else " -r"
                lines.append(f"{seen} {names}{value}{words} -d {_quoted(_short(flag))}")
                if flag.many and words:  # fish knows of the first value of a flag alone
                    after = f"__fish_seen_subcommand_from {one.name}; and __grpo_after {flag.names[0]}"
                    lines.append(f"{start} -n '{after}'{words}")
    return "\n".join(lines)


_FISH_AFTER = """function __grpo_after
    set -l flag
    for word in (commandline -opc)
        string match -q -- '-*' $word; and set flag $word
    end
    test "$flag" = $argv[1]
end"""


def _short(flag: FlagHelp) -> str:
    """A description that fits beside its flag."""
    return flag.about if len(flag.about) <= 70 else f"{flag.about[:67].rsplit(' ', 1)[0]} ..."


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", " ").replace("'", "’").replace("`", "") + "'"


SHELLS: dict[str, Callable[[list[Completed]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="grpo completion",
        description="Print a script with which a shell completes stages, flags, their choices and files.",
        epilog=f"{(__doc__ or '').partition(chr(10) * 2)[2]}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("shell", nargs="*", metavar="SHELL", help=", ".join(SHELLS))
    given, unknown = parser.parse_known_args(argv)
    if unknown or len(given.shell) != 1 or given.shell[0] not in SHELLS:
        seen = " ".join([*given.shell, *unknown]) or "nothing"
        raise ConfigError([f"got {seen}; give one shell of {', '.join(SHELLS)}; see `grpo completion --help`"])
    print(SHELLS[given.shell[0]](completed_stages()))
    return 0
