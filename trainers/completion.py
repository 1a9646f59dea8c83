"""Tab completion for bash and zsh: one script with every key and choice in it.

A TAB then reads words that are there, and starts no Python.  What a path stands for is completed
by the shell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from trainers.compose import LEAVES, choices
from trainers.finetuning.settings import FinetuneConfig, groups
from trainers.flags import FLAGS
from trainers.typed import leaves

SHELLS = ("bash", "zsh")
_PATHS = ("run.dir", "data.path", "data.cache_dir", "data.tokenizer", "model.path")
_FINETUNE_PATHS = ("model", "data", "out")

_BASH = """\
# Tab completion of came-train and its like for bash, printed by `came-train --completion bash`.
_came() {
    local line="${COMP_LINE:0:COMP_POINT}" words values paths flags
    local current="${line##* }" key
    local command="${COMP_WORDS[0]##*/}"
@cases@
    key="${current%%=*}"
    if [[ $current != *=* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        [[ $current == -* ]] && COMPREPLY=($(compgen -W "$flags" -- "$current"))
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    elif [[ " $paths " == *" $key "* ]]; then
        local typed="${current#*=}" parted
        mapfile -t COMPREPLY < <(compgen -f -- "$typed")
        compopt -o filenames
        parted="${typed%"${typed##*=}"}"  # a path may hold a = too
        if [[ $COMP_WORDBREAKS != *=* ]]; then
            COMPREPLY=("${COMPREPLY[@]/#/$key=}")
        elif [[ -n $parted ]]; then
            COMPREPLY=("${COMPREPLY[@]#"$parted"}")
            compopt -o nospace
        fi
    else
        # Of a sweep, came,adamw, what stands behind the last comma is completed.
        local swept="${current#*=}"
        swept="${swept%"${swept##*,}"}"
        COMPREPLY=($(compgen -W "$values" -- "$key=${current##*[=,]}"))
        COMPREPLY=("${COMPREPLY[@]/#"$key="/"$key=$swept"}")
        # Where = parts words, bash replaces what stands behind it alone.
        [[ $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
    fi
}
complete -F _came @commands@
"""

_ZSH = """\
# Tab completion of came-train and its like for zsh, printed by `came-train --completion zsh`.
_came() {
    local current=$PREFIX command=${words[1]:t} key words values paths flags
@cases@
    key=${current%%=*}
    if [[ $current == -* ]]; then
        compadd -- ${=flags}
    elif [[ $current != *=* ]]; then
        compadd -S '' -- ${=words}
    elif [[ " $paths " == *" $key "* ]]; then
        compset -P 1 '*=' && _files
    else
        compset -P 1 '*='
        compset -P '*,'  # of a sweep, came,adamw
        compadd -- ${${(M)${=values}:#$key=*}#*=}
    fi
}
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
compdef _came @commands@
"""


def script(shell: Literal["bash", "zsh"]) -> str:
    """What a shell reads to complete the words of all commands that take settings."""
    text = {"bash": _BASH, "zsh": _ZSH}[shell]
    words = [*_words(LEAVES, choices()), f"    paths='{' '.join(_PATHS)}'"]
    own = [*_words(leaves(FinetuneConfig), groups()), f"    paths='{' '.join(_FINETUNE_PATHS)}'"]
    flags = [f"        {command}) flags='{' '.join(known)}' ;;" for command, known in FLAGS.items()]
    lines = [
        *words,
        "    if [[ $command == came-finetune ]]; then",
        *(f"    {line}" for line in own),
        "    fi",
        '    case "$command" in',
        *flags,
        "    esac",
    ]
    return text.replace("@cases@", "\n".join(lines)).replace("@commands@", " ".join(FLAGS))


def _words(keys: Mapping[str, Any], chosen: Mapping[str, list[str]]) -> Iterator[str]:
    names = sorted(f"{key}=" for key in {*keys, *chosen} if not _is_choice(key, chosen))
    yield f"    words='{' '.join(names)}'"
    yield f"    values='{' '.join(sorted(_values(keys, chosen)))}'"


def _is_choice(key: str, chosen: Mapping[str, list[str]]) -> bool:
    """`optimizer.name` is set by optimizer=... alone."""
    section, _, name = key.rpartition(".")
    return name == "name" and section in chosen


def _values(keys: Mapping[str, Any], chosen: Mapping[str, list[str]]) -> Iterator[str]:
    """`key=value` of all that can be listed."""
    for group, names in chosen.items():
        yield from (f"{group}={name}" for name in names)
    for key, kind in keys.items():
        if not _is_choice(key, chosen) and key not in chosen:
            yield from (f"{key}={value}" for value in _listed(kind))


def _listed(kind: Any) -> tuple[str, ...]:
    if kind is bool:
        return "true", "false"
    if get_origin(kind) is Literal:
        return tuple(str(value) for value in get_args(kind))
    found: list[str] = []
    for inner in get_args(kind) if type(None) in get_args(kind) else ():
        found += ("null",) if inner is type(None) else _listed(inner)
    return tuple(found)
