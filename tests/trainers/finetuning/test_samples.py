"""Files of GLUE and SQuAD: as published, as copies go about, and broken."""

import json
import math
from pathlib import Path

import pytest

from trainers.errors import DataError
from trainers.finetuning.questions import read_questions
from trainers.finetuning.settings import compose_finetune
from trainers.finetuning.sources import from_rows, read_data
from trainers.finetuning.tables import read_table
from trainers.finetuning.tasks import GLUE, Example

MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tHe said "x\t" y .\r\n'


def table(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize(
    ("task", "name", "text", "wanted"),
    [
        ("mrpc", "a.tsv", MRPC, Example(('He said "x', '" y .'), 1)),
        ("sst2", "a.tsv", "sentence\tlabel\nnice \t1\n\n", Example(("nice",), 1)),
        ("cola", "a.tsv", "gj04\t0\t*\tThem sings.\n", Example(("Them sings.",), 0)),
        ("cola", "a.tsv", "sentence\tlabel\nThem sings.\t0\n", Example(("Them sings.",), 0)),
        ("mnli", "a.csv", 'premise,hypothesis,label\n"a, ""b""",c,neutral\n', None),
        ("mnli", "a.tsv", "x\tsentence1\tsentence2\tgold_label\n0\ta\tb\tcontradiction\n", 2),
        ("rte", "a.tsv", "sentence1\tsentence2\tlabel\na\u2028b\tc\tnot_entailment\n", 1),
        ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\t3.750\n", 3.75),
        ("qnli", "a.csv", "question,sentence,label\na,b,entailment\n", 0),
    ],
)
def test_a_table_is_read(tmp_path: Path, task, name, text, wanted) -> None:
    (found,) = read_table(table(tmp_path, name, text), GLUE[task])
    if wanted is None:
        assert found == Example(('a, "b"', "c"), 1)
    else:
        assert (found if isinstance(wanted, Example) else found.label) == wanted


def test_a_carriage_return_inside_a_sentence_ends_no_line(tmp_path: Path) -> None:
    """It made two rows of one, and the second was refused for its columns."""
    for end in ("\n", "\r\n"):
        text = end.join(["sentence\tlabel", "so\rso\t1", "bad\t0", ""])
        found = read_table(table(tmp_path, "a.tsv", text), GLUE["sst2"])
        assert found == [Example(("so\rso",), 1), Example(("bad",), 0)]
        text = end.join(["sentence,label", '"so\rso",1', f'"b{end}d",0', ""])
        found = read_table(table(tmp_path, "a.csv", text), GLUE["sst2"])
        assert found == [Example(("so\rso",), 1), Example((f"b{end}d",), 0)]


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("sst2", "text\tlabel\nnice\t1\n", "line 1: no column 'sentence'.* there is 'text', 'lab"),
        ("mrpc", "Quality\t#1 String\n1\ta\n", "no column '#2 String' or 'sentence2'"),
        ("sst2", "sentence\tlabel\nnice\t1\nbad\n", "line 3: 1 columns, at least 2"),
        ("sst2", "sentence\tlabel\nnice\t2\n", "line 2: '2' is no label of sst2: negative, pos"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t7\n", "line 2: 7.0 is no score of stsb: 0 to"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tx\n", "line 2: could not convert"),
        ("sst2", "sentence\tlabel\n", "has no samples"),
        ("sst2", "", "no column"),
    ],
)
def test_a_broken_table_is_told_with_its_line(tmp_path: Path, task, text, words) -> None:
    with pytest.raises(DataError, match=words):
        read_table(table(tmp_path, "train.tsv", text), GLUE[task])


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(DataError, match="a.tsv is no UTF-8: byte 15"):
        read_table(tmp_path / "a.tsv", GLUE["sst2"])
    with pytest.raises(DataError, match="b.tsv cannot be read"):
        read_table(tmp_path / "b.tsv", GLUE["sst2"])
    with pytest.raises(DataError, match="line 3: unexpected end"):
        read_table(table(tmp_path, "c.csv", 'sentence,label\n"nice,1\n'), GLUE["sst2"])


def squad(*questions: dict, context: str = "Rome is old.") -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


ASKED = {"id": "q", "question": " How is it? ", "answers": [{"text": "old", "answer_start": 8}]}


def test_questions_with_and_without_an_answer(tmp_path: Path) -> None:
    impossible = {"id": "n", "question": "Why?", "is_impossible": True, "answers": []}
    file = table(tmp_path, "a.json", squad(ASKED, impossible))
    first, second = read_questions(file, answerable=False)
    assert (first.text, first.answers, first.starts) == ("How is it?", ("old",), (8,))
    assert (second.answers, second.starts) == ((), ())
    with pytest.raises(DataError, match="question n has no answer.*task=squad_v2"):
        read_questions(file, answerable=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "is not SQuAD's format"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', "format.*KeyError"),
        ('{"data": []}', "has no questions"),
        (
            squad({**ASKED, "answers": [{"text": "old", "answer_start": 9}]}),
            "q: at character 9 .*ld",
        ),
        (squad({**ASKED, "answers": [{"text": "old", "answer_start": -3}]}), "at character -3"),
        (squad({**ASKED, "answers": [{"text": "", "answer_start": 3}]}), "not the answer ''"),
        (squad({**ASKED, "answers": [{"text": "old", "answer_start": "four"}]}), "format.*'four'"),
        (squad({**ASKED, "answers": [{"text": "old", "answer_start": math.inf}]}), "format.*infin"),
        (squad({**ASKED, "answers": [{"text": 7, "answer_start": 8}]}), "format.*7 is no text"),
        (squad(ASKED, context=["Rome"]), r"format.*\['Rome'\] is no text"),
    ],
)
def test_broken_questions_are_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_questions(table(tmp_path, "a.json", text), answerable=True)


def read(data: str, task: str):
    return read_data(compose_finetune(["model=m", f"task={task}", f"data={data}"]))


def test_a_folder_and_two_files(tmp_path: Path) -> None:
    text = "sentence\tlabel\nnice\t1\n"
    train, dev = (
        table(tmp_path, "train.tsv", text),
        table(tmp_path, "validation.csv", "sentence,label\nx,0\n"),
    )
    for data in (f"{tmp_path}", f"{train},{dev}"):
        found = read(data, "sst2")
        assert (found.train[0].label, found.dev["dev"][0].label) == (1, 0)
        assert found.origin.keys() == {"train", "dev"} and len(found.origin["dev"]) == 64
    with pytest.raises(DataError, match="no folder, and no two files"):
        read(f"{train}", "sst2")
    with pytest.raises(DataError, match="has no dev_matched.tsv or dev_matched.csv"):
        read(f"{tmp_path}", "mnli")
    table(tmp_path, "dev.tsv", text)
    with pytest.raises(DataError, match="several dev.tsv or dev.csv .dev.tsv, validation.csv"):
        read(f"{tmp_path}", "sst2")


def test_a_folder_with_both_versions_of_squad(tmp_path: Path) -> None:
    for name in ("train-v1.1.json", "dev-v1.1.json", "train-v2.0.json", "dev-v2.0.json"):
        table(tmp_path, name, squad({**ASKED, "id": name}))
    for version in ("1", "2"):
        found = read(f"{tmp_path}", f"squad_v{version}")
        assert found.train[0].id.startswith(f"train-v{version}")
        assert found.dev["dev"][0].id.startswith(f"dev-v{version}")


def test_rows_of_the_hub() -> None:
    row = {"sentence1": "a ", "sentence2": "b", "label": 1, "idx": 0}
    assert from_rows([row], "mrpc", "train") == [Example(("a", "b"), 1)]
    row = {"premise": "a", "hypothesis": "b", "label": -1}  # of a test set, without labels
    with pytest.raises(DataError, match="split train: ValueError: '-1' is no label of mnli"):
        from_rows([row], "mnli", "train")
    answers = {"text": ["old"], "answer_start": [8]}
    row = {"id": 1, "question": "?", "context": "Rome is old.", "answers": answers}
    (found,) = from_rows([row], "squad_v1", "train")
    assert found.starts == (8,)
    with pytest.raises(DataError, match="question 1: at character 8"):
        from_rows([{**row, "context": "Rome was old."}], "squad_v1", "train")
    with pytest.raises(DataError, match="KeyError: 'context'"):
        from_rows([{"id": 1, "question": "?", "answers": answers}], "squad_v2", "train")


def test_without_the_hub_the_local_way_is_named(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for task in ("rte", "squad_v2"):
        with pytest.raises(DataError, match=f"task={task}: HF_HUB_OFFLINE.*data=FOLDER"):
            read_data(compose_finetune(["model=m", f"task={task}"]))
