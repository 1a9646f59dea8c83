"""A comparison by fine-tuning: what is held back, what chooses, what the dev file is kept for."""

import contextlib
import json
import os
import signal
import sys
import textwrap
import threading
import time

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
    value = 0.5 if words["task"] == "rte" else value
    count = int(words.get("seeds", 3))
    seeds = {str(seed): {"metrics": {"accuracy": value}} for seed in range(count)}
    settings = {"task": words["task"], "untrained": untrained, "optimizer.name": words["optimizer"],
                "optimizer.lr": rate, "data": words["data"]}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "seeds": seeds}))
    """)
ASKED = {"id": "1", "question": "who", "answers": [{"text": "he", "answer_start": 0}]}
ARTICLE = {"title": "a", "paragraphs": [{"context": "he did", "qas": [ASKED]}]}
ROWS = [f"text {i} .\t{i % 2}\n" for i in range(40)]


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
    assert run(glue) == 0
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
    assert "\nuntrained_adamw: 0.0015 of  0.00017: " in said and ", 0.0045: diverged\n" in said


def test_of_equal_rates_the_first_is_taken(glue, capsys):
    """A model that always answers the same is as good at every rate: no reason to go on."""
    (glue / "train.tsv").write_text("sentence1\tsentence2\tlabel\n" + "a b\tc\t0\nd\te f\t1\n")
    (glue / "dev.tsv").write_text((glue / "train.tsv").read_text())
    assert run(glue, "task=rte") == 0
    said = capsys.readouterr().out
    assert "pretrained_came: 0.0001 of  3.3e-05: 50.00%, 0.0001: 50.00%, 0.0003: 50.00%" in said


def test_a_table_is_cut_and_what_shares_a_text_with_the_held_back_goes(tmp_path):
    """SST-2 has phrases: nine in ten of those held back stood in a row that was learned."""
    rows = [f"row {chr(97 + i)} of many\t{i % 2}\n" for i in range(20)]  # 0 and 10 are held back
    rows[1] = "a row a of many words\t1\n"
    rows[2] = "a of\t0\n"
    rows[3] = "ow a of many\t1\n"  # no whole word
    rows[4] = "row k of many\t1\n"  # the very text
    file = tmp_path / "train.tsv"
    file.write_text("\ufeffsentence\tlabel\n\n" + "".join(rows), encoding="utf-8")
    learned, held = script.split_table(file, script.GLUE["sst2"])
    assert held == "sentence\tlabel\n" + rows[0] + rows[10]
    assert learned == "sentence\tlabel\n" + "".join([rows[3], *rows[5:10], *rows[11:]])


def test_an_empty_text_that_is_held_back_is_shared_by_nothing(tmp_path):
    rows = ["\t0\n", *(f"a  text {i}\t1\n" for i in range(12))]
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    learned, held = script.split_table(tmp_path / "train.tsv", script.GLUE["sst2"])
    assert held.endswith("label\n\t0\n") and learned.count("a  text") == 12


def test_a_table_without_names_loses_no_row_to_them(tmp_path):
    rows = [f"gj04\t{i % 2}\t*\tSentence {i} stands here .\n" for i in range(20)]
    (tmp_path / "train.tsv").write_text("".join(rows))
    learned, held = script.split_table(tmp_path / "train.tsv", script.GLUE["cola"])
    assert held == rows[0] + rows[10]
    assert learned == "".join(rows[1:10] + rows[11:])


def test_articles_of_squad_stay_whole(tmp_path):
    articles = [{**ARTICLE, "title": str(i)} for i in range(22)]
    tree = {"version": "1.1", "data": articles}
    (tmp_path / "train.json").write_text(json.dumps(tree))
    learned, held = map(json.loads, script.split_articles(tmp_path / "train.json", True))
    assert [article["title"] for article in held["data"]] == ["0", "11"]
    assert len(learned["data"]) == 20 and learned["version"] == "1.1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task=sst2", "optimizer.lr=1"), "optimizer.lr: this script sets that itself"),
        (("task=sst2", "data=SST-2/"), "data=SST-2/ must be TRAIN_FILE,DEV_FILE: two files"),
        (("task=sst2", "data={0}/train.tsv,none.tsv"), "must be TRAIN_FILE,DEV_FILE: two files"),
        (("task=mrpc", "data={0}/train.tsv,{0}/dev.tsv"), "which mrpc needs"),
        (("task=squad_v1", "data={0}/no.json,{0}/dev.tsv"), "no.json is not SQuAD's format"),
        (("task=squad_v1", "data={0}/dev.tsv,{0}/dev.tsv"), "dev.tsv is no JSON"),
        (("data={0}/train.tsv,{0}/none.tsv",), "none.tsv has no samples"),
        (("data={0}/train.tsv,{0}/named.tsv",), "no column 'label', which sst2 needs"),
        (("data={0}/latin.tsv,{0}/dev.tsv",), "latin.tsv is no UTF-8: byte "),
        (("task=squad_v1", "data={0}/one.json,{0}/one.json"), "of 1 articles no question is to be"),
        (("task=sst",), "sst2"),
        (("seeds=0",), "seeds"),
        (("--out", "{0}/a,b"), "a comma parts the two files of data="),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_run(words, said, glue, capsys):
    (glue / "no.json").write_text("[]")
    (glue / "one.json").write_text(json.dumps({"data": [ARTICLE]}))
    (glue / "none.tsv").write_text("sentence\tlabel\n")
    (glue / "named.tsv").write_text("sentence\tlabels\nA text\t1\n")
    (glue / "latin.tsv").write_bytes("sentence\tlabel\ncaf\u00e9\t1\n".encode("latin-1"))
    data = f"data={glue}/train.tsv,{glue}/dev.tsv"
    given = [word.format(glue) for word in words]
    assert script.main(["model=m", "task=sst2", data, "--out", str(glue / "out"), *given]) == 1
    assert said in capsys.readouterr().err
    assert not (glue / "out").exists()


def test_a_failure_is_no_result_and_ends_it(glue, monkeypatch, capsys):
    monkeypatch.setattr(script, "FINETUNE", (sys.executable, "-c", "raise SystemExit(3)"))
    assert run(glue) == 1
    said = capsys.readouterr()
    assert "ended with 3: read " in said.err and said.out.count("start") == 1
    code = 'import sys; sys.exit(\'error: x\\n{"reason": "no column in d.tsv"}\')'
    monkeypatch.setattr(script, "FINETUNE", (sys.executable, "-c", code))
    assert run(glue) == 1
    assert "ended with 1: no column in d.tsv\n" in capsys.readouterr().err


def test_what_diverged_is_tried_again(glue, capsys):
    """The words do not say whether weights and data are still those that diverged."""
    for _ in range(2):
        assert run(glue) == 0
        said = capsys.readouterr().out
        assert f"start  {glue / 'out/rates/untrained_adamw_0.0045'}" in said
        assert ", 0.0045: diverged\n" in said


def test_no_file_that_was_there_is_written_over(glue, capsys):
    """--out in GLUE's own folder made its train.tsv smaller at every start."""
    before = {file.name: file.read_bytes() for file in glue.glob("*.tsv")}
    assert run(glue, "--out", str(glue)) == 1
    said = capsys.readouterr().err
    assert f"{glue}/train.tsv is there, with other content: name another folder" in said
    assert {file.name: file.read_bytes() for file in glue.glob("*.tsv")} == before
    assert run(glue) == run(glue) == 0, "what this script wrote itself may be there"
    (glue / "train.tsv").write_text("sentence\tlabel\n" + "".join(ROWS[:30]))
    assert run(glue) == 1
    assert "out/train.tsv is there, with other content" in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_words(signum, glue, monkeypatch, capsys):
    """And the fine-tuning with it, that nothing goes on unseen."""
    begun = glue / "begun"
    code = f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(script, "FINETUNE", (sys.executable, "-c", code))

    def stop() -> None:
        while not (begun.exists() and begun.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    threading.Thread(target=stop, daemon=True).start()
    try:
        assert run(glue) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "stopped: the same command goes on\n"
    with contextlib.suppress(ChildProcessError):  # waited for before
        assert os.waitpid(int(begun.read_text()), 0)[1] == signal.SIGKILL
