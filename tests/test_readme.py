"""Every command and every line of Python in the README does what the README says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.commands import REPOSITORY, SHORT, blocks, commands, run_here
from tests.ranks import run_ranks
from tests.trainers.data.corpus import write_text

README = (REPOSITORY / "README.md").read_text()
COMMANDS = commands(README)
SNIPPETS = blocks(README, "python")
CHECKED_BY_CI = (["make", "test"],)


def is_training(command: list[str]) -> bool:
    return command[0] in ("came-train", "torchrun")


def test_every_command_is_known_to_this_test() -> None:
    others = [c for c in COMMANDS if not is_training(c) and c not in CHECKED_BY_CI]
    assert others[0] == ["make", "quickstart"]
    assert [command[0] for command in others[1:]] == ["came-export", "came-eval"]
    assert len([c for c in COMMANDS if is_training(c)]) >= 4
    assert len(SNIPPETS) == 2


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", num_documents=200)


def short_words(text: Path, run_dir: Path) -> list[str]:
    return [*SHORT, f"data.path={text}", f"data.cache_dir={text.parent}", f"run.dir={run_dir}"]


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if is_training(c) and c[-1] != "experiment=quickstart_gpt2"],
    ids=lambda c: " ".join(c),
)
def test_training_commands(command: list[str], text: Path, tmp_path: Path) -> None:
    run_here([*command, *short_words(text, tmp_path)])
    assert (tmp_path / "report" / "summary.md").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_is_exported_and_judged(text: Path, tmp_path: Path) -> None:
    run, exported = tmp_path / "run", tmp_path / "exported"
    other = write_text(tmp_path / "other.txt", 50)
    (train,) = [c for c in COMMANDS if c[-1] == "experiment=quickstart_gpt2"]
    run_here([*train, *short_words(text, run)])
    places = {"runs/quickstart_gpt2": f"{run}", "exported_gpt2/": f"{exported}"}
    places |= {"run.dir=exported_gpt2/": f"run.dir={exported}"}
    places |= {"data.path=other_texts/": f"data.path={other}"}
    for name in ("came-export", "came-eval"):
        (command,) = [c for c in COMMANDS if c[0] == name]
        run_here([places.get(word, word) for word in command])
    assert (exported / "config.json").exists()


def test_make_quickstart(text: Path, tmp_path: Path) -> None:
    if not (REPOSITORY / ".venv" / ".installed").exists():
        pytest.skip("`make test` installs the .venv that `make quickstart` uses")
    run_here(["make", "quickstart", "ARGS=" + " ".join(short_words(text, tmp_path))])
    assert (tmp_path / "report" / "curves.png").exists()


def drop_in(snippet: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    names = {"model": model}
    exec(snippet, names)
    engine = names["engine"]
    for _ in range(2):
        engine.backward(engine(torch.ones(4, 6)).square().sum())
        engine.step()
    state = engine.basic_optimizer.state
    assert all(value["exp_avg_sq_row"].numel() == 7 + 3 for value in state.values())


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_on_two_ranks(snippet: str) -> None:
    run_ranks(drop_in, 2, snippet)
