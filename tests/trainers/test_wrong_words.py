"""Every command names what was meant by a wrong word, all of them at once, and exits with 2."""

import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from trainers import (
    check,
    checkpoint_command,
    export,
    finetune,
    judge,
    plan,
    prepare,
    pretrain,
    status,
)
from trainers import report as report_command
from trainers.compose import LEAVES, choices
from trainers.flags import FLAGS
from trainers.words import split

Run = Callable[[list[str]], int | None]


def of_process(main: Callable[[], None]) -> Run:
    """A command that reads the words of its process and ends it."""

    def run(words: list[str]) -> int:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["command", *words])
            main()
        return int(str(ended.value.code))

    return run


SETTINGS: dict[str, Run] = {
    "came-train": of_process(pretrain.main),
    "came-check": check.main,
    "came-plan": plan.main,
    "came-prepare": of_process(prepare.main),
    "came-eval": of_process(judge.main),
}
FINETUNE = {"came-finetune": finetune.main}
FOLDERS: dict[str, Run] = {
    "came-export": export.main,
    "came-report": report_command.main,
    "came-status": status.main,
    "came-checkpoint": checkpoint_command.run,
}
COMMANDS = {**SETTINGS, **FINETUNE, **FOLDERS}
TABLE = [(group, name) for group, names in choices().items() for name in names]


@pytest.fixture(autouse=True)
def no_group_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pretrain.listener, "listen", lambda **how: None)


def typo(word: str) -> str:
    """`word` with two of its last letters exchanged, as fingers do."""
    last = next(i for i in range(len(word) - 1, 0, -1) if word[i] != word[i - 1])
    return word[: last - 1] + word[last] + word[last - 1] + word[last + 1 :]


def test_all_commands_are_tried() -> None:
    assert set(COMMANDS) >= {*FLAGS}
    assert len(set(COMMANDS)) == 10


@pytest.mark.parametrize("command", SETTINGS)
def test_several_wrong_words_are_told_at_once(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trian.steps=3", "optimiser.lr=1", "optimizer=cmae", "zero.stgae=1", "--hlep"]
    assert SETTINGS[command](words) == 2
    told = capsys.readouterr().err.splitlines()
    for hint in ("train.steps", "optimizer.lr", "came", "zero.stage", "--help"):
        assert [f"did you mean '{hint}'" in line for line in told[:-1]].count(True) == 1, told


@pytest.mark.parametrize("command", SETTINGS)
def test_a_wrong_choice_of_every_group_gets_the_nearest(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {group: names[-1] for group, names in choices().items()}
    assert SETTINGS[command]([f"{group}={typo(name)}" for group, name in last.items()]) == 2
    told = capsys.readouterr().err.splitlines()[:-1]
    for group, name in last.items():
        (said,) = [line for line in told if f"no {group} is named '{typo(name)}'" in line]
        assert f"'{name}'" in said or name in said.rpartition("choose one of")[2].split(", ")


@pytest.mark.parametrize(("group", "name"), TABLE)
def test_the_nearest_of_all_choices_is_the_one_that_was_meant(group: str, name: str) -> None:
    problems: list[str] = []
    split([f"{group}={typo(name)}"], {}, choices(), problems)
    (answer,) = problems
    assert f"did you mean '{name}'" in answer or name in answer.split("choose one of ")[1]


def test_the_nearest_of_all_keys_is_the_one_that_was_meant() -> None:
    for key in LEAVES:
        problems: list[str] = []
        split([f"{typo(key)}=1"], LEAVES, choices(), problems)
        assert len(problems) == 1 and f"'{key}'" in problems[0], (typo(key), problems)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_gets_the_nearest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = FLAGS.get(command, ("--help",))
    for flag in flags if command in FOLDERS or command == "came-check" else flags[-2:]:
        assert COMMANDS[command]([f"{flag}{flag[-1]}"]) == 2
        said = capsys.readouterr().err
        assert f"unknown option '{flag}{flag[-1]}'; did you mean '{flag}'?" in said


def test_the_options_of_folders_are_known_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    for words, answer in (
        (["came-report", "runs", "--pper", "x"], "did you mean '--paper'"),
        (["came-report", "runs", "--paper", "gtp2_medium"], "did you mean 'gpt2_medium'"),
        (["came-status", "--jsn"], "did you mean '--json'"),
        (["came-report"], "required: RUN; `came-report --help`"),
        (["came-export", "run"], "required: OUT; `came-export --help`"),
        (["came-checkpoint", "verfy", "runs"], "did you mean 'verify'"),
        (["came-checkpoint", "list", "runs", "--jsn"], "did you mean '--json'"),
        (["came-checkpoint", "export", "runs", "--uot=x"], "did you mean '--out'"),
        (["came-plan", "--mfu", "much"], "invalid float value: 'much'"),
    ):
        assert COMMANDS[words[0]](words[1:]) == 2
        assert answer in capsys.readouterr().err


def test_fine_tuning_names_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=run", "tsak=sst2", "task=mrcp", "optimizer=cmae", "--untraind", "sedes=3"]
    assert finetune.main(words) == 2
    said = capsys.readouterr().err
    for hint in ("task", "mrpc", "came", "--untrained", "seeds"):
        assert f"did you mean '{hint}'" in said, said
    assert said.startswith("error: 5 problems")  # and none that task, left out, has no value


def test_a_typo_changes_its_word() -> None:
    assert [typo(word) for word in ("train.steps", "c4", "none")] == ["train.stesp", "4c", "noen"]
    assert all(typo(a) != a for a, _ in pairwise(name for _, name in TABLE))
