"""The plans of scripts/reproduction, and which part of one a command runs."""

from pathlib import Path

import pytest

from scripts import reproduce
from scripts.reproduction import drive
from scripts.reproduction.order import Run
from scripts.reproduction.plan import PLANS, Plan, read_plan
from trainers.compose import compose

PAPERS = ("came", "adamw", "adafactor", "lamb", "sm3")


@pytest.fixture
def seen(monkeypatch) -> list[Plan]:
    """The plans that are driven."""
    plans: list[Plan] = []
    monkeypatch.setattr(reproduce, "drive", lambda plan, out, minutes: plans.append(plan) or True)
    return plans


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_a_plan_composes(path):
    plan = read_plan(path)
    for task in plan.tasks:
        for contestant in task.contestants:
            words = drive.words_of(plan, Run(task.name, contestant.name, 1, 2), Path("runs/x"))
            config = compose(words, 1)
            assert config.run.seed == 2
            assert config.optimizer.lr == pytest.approx(plan.factor * contestant.lr, rel=1e-3)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_adafactor_begins_at_a_rate_of_its_kind_of_step(path):
    """Relative to the parameters it is some hundredths, else about that of CAME."""
    plan = read_plan(path)
    for task in plan.tasks:
        for contestant in task.contestants:
            words = drive.words_of(plan, Run(task.name, contestant.name, 0, 0), Path("runs/x"))
            optimizer = compose(words, 1).optimizer
            if optimizer.name == "adafactor":
                assert (optimizer.lr > 1e-2) == bool(optimizer.scale_parameter), task.name


def test_tasks_that_are_named_are_run_alone_and_in_the_order_of_the_plan(seen, capsys):
    assert reproduce.main(["cpu", "--task", "t5", "--task", "gpt2"]) == 0
    assert [task.name for task in seen[0].tasks] == ["gpt2", "t5"]
    assert reproduce.main(["cpu", "--task", "gpt3"]) == 1
    assert capsys.readouterr().err == (
        "error: --task gpt3: the plan has bert_small_batch, gpt2, t5, bert_large_batch, and with "
        "--beyond learning_rates, bert_larger_batch\n"
    )


def test_what_the_paper_does_not_compare_waits_to_be_asked_for(seen):
    assert reproduce.main(["cpu"]) == reproduce.main(["cpu", "--beyond"]) == 0
    papers, all_of_it = seen
    assert [task.name for task in papers.tasks] == [
        *("bert_small_batch", "gpt2", "t5", "bert_large_batch")
    ]
    assert all(tuple(c.name for c in task.contestants) == PAPERS for task in papers.tasks)
    assert all_of_it.tasks == read_plan(PLANS / "cpu.yaml").tasks
    assert reproduce.main(["cpu", "--beyond", "--task", "bert_larger_batch"]) == 0
    assert [task.name for task in seen[2].tasks] == ["bert_larger_batch"]


def test_a_table_has_what_was_run_beyond_the_paper(capsys):
    committed = PLANS.parents[1] / "docs/reproduction/cpu"
    assert reproduce.main(["cpu", "--table", "--out", str(committed)]) == 0
    assert "| came_sign | 0.00015 | 3 |" in capsys.readouterr().out


def test_a_plan_says_what_it_does_not_know(tmp_path):
    text = (PLANS / "cpu.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text.replace("lr: {came:", "lr: {cme: 1.0, came:", 1))
    with pytest.raises(ValueError, match=r"names cme; contestants are came, adamw"):
        read_plan(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(text.replace("  - came_sign\n", "  - came_sing\n", 1))
    with pytest.raises(ValueError, match=r"beyond: came_sing: neither task nor contestant"):
        read_plan(tmp_path / "a.yaml")
