"""A comparison by fine-tuning: what is held back, what chooses, what the dev file is kept for."""

import json
import sys
import textwrap

import pytest

from scripts import compare_finetuning as script

# A stand-in for came-finetune: better the nearer its rate is to one that differs with the weights.
FINETUNE = textwrap.dedent("""\
    import json, math, sys
    from pathlib import Path
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    folder, rate = Path(words["out"]), float(words["optimizer.lr"])
    if rate > 4e-3:
        sys.exit(5)  # diverged
    untrained = words["untrained"] == "true"
    value = 0.9 - abs(math.log10(rate / (1e-3 if untrained else 1e-4))) / 10
    count = int(words.get("seeds", 3))
    seeds = {str(seed): {"metrics": {"accuracy": value}} for seed in range(count)}
    settings = {"task": words["task"], "untrained": untrained, "optimizer.name": words["optimizer"],
                "optimizer.lr": rate, "data": words["data"]}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "seeds": seeds}))
    """)
ROWS = [f"text {i}\t{i % 2}\n" for i in range(40)]


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A task's files, and came-finetune replaced."""
    (tmp_path / "finetune.py").write_text(FINETUNE)
    monkeypatch.setattr(script, "FINETUNE", (sys.executable, str(tmp_path / "finetune.py")))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(ROWS))
    return tmp_path


def run(folder, *more: str) -> int:
    data = f"data={folder}/train.tsv,{folder}/dev.tsv"
    return script.main(["model=m", "task=sst2", data, "--out", str(folder / "out"), *more])


def test_the_rate_is_chosen_by_what_is_held_back_and_the_dev_file_is_seen_once(glue, capsys):
    assert run(glue, "--jobs", "2") == 0
    out = glue / "out"
    chosen = {}
    for folder in sorted(path.parent for path in out.rglob("results.json")):
        told = json.loads((folder / "results.json").read_text())
        judged_by = told["settings"]["data"].partition(",")[2]
        if folder.parent == out:
            assert (judged_by, len(told["seeds"])) == (f"{glue}/dev.tsv", 3)
            chosen[folder.name] = told["settings"]["optimizer.lr"]
        else:
            assert (judged_by, len(told["seeds"])) == (f"{out}/held_back.tsv", 1)
        assert told["settings"]["data"].startswith(f"{out}/train.tsv,")
    assert chosen == {
        "pretrained_came": 1e-4,
        "pretrained_adamw": 1.7e-4,  # 5.6e-05 is tried for it, and is farther
        "untrained_came": 9e-4,
        "untrained_adamw": 1.5e-3,
    }
    said = capsys.readouterr().out
    assert "untrained_adamw, chosen from  0.00017: " in said and "0.0045: diverged" in said


def test_the_two_parts_of_a_table_are_the_whole(glue):
    content = (glue / "train.tsv").read_bytes()
    learned, held = (part.decode().splitlines(keepends=True) for part in script.split(content))
    assert learned[0] == held[0] == "sentence\tlabel\n"
    assert held[1:] == [ROWS[0], ROWS[10], ROWS[20], ROWS[30]]
    assert sorted(learned[1:] + held[1:]) == sorted(ROWS)


def test_articles_of_squad_stay_whole():
    tree = {"version": "1.1", "data": [{"title": str(i), "paragraphs": []} for i in range(12)]}
    learned, held = map(json.loads, script.split(json.dumps(tree).encode(), articles=True))
    assert [article["title"] for article in held["data"]] == ["0"]
    assert learned["data"] == tree["data"][1:] and learned["version"] == "1.1"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr=1", "optimizer.lr: this script sets that itself"),
        ("data=SST-2/", "data=TRAIN_FILE,DEV_FILE is needed"),
        ("data=a.csv,b.csv", "a .tsv of GLUE or a .json of SQuAD can be cut in two"),
        ("data=none.tsv,b.tsv", "No such file or directory: 'none.tsv'"),
    ],
)
def test_what_cannot_be_compared_is_told(word, said, tmp_path, capsys):
    assert script.main(["model=m", "task=sst2", word, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failure_is_no_result(glue, monkeypatch, capsys):
    monkeypatch.setattr(script, "FINETUNE", (sys.executable, "-c", "raise SystemExit(3)"))
    assert run(glue) == 1
    assert "ended with 3: read " in capsys.readouterr().err
