"""What a reader of the pages has, and a test has not: texts, tasks, a queue."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from tests.trainers.data.corpus import WORDS, random_sentence, write_text

NUM_DOCUMENTS = 200
MODEL = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
# A batch script is looked at by the shell, and not run.
SBATCH = '#!/bin/bash\nbash -n "$1" && grep -q "^#SBATCH" "$1" && echo "Submitted batch job 17"\n'


def make_files(folder: Path) -> None:
    """The files that the pages name, by the names that they have there."""
    for name in ("my_texts", "wikipedia", "text", "other_texts"):
        (folder / name).mkdir()
        write_text(folder / name / "text.txt", NUM_DOCUMENTS)
    texts = _documents(seed=1)
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (folder / "articles.jsonl.gz").write_bytes(gzip.compress(f"{lines}broken\n".encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "web.parquet")
    alphabet = [*"abcdefghijklmnopqrstuvwxyz."]
    alphabet += [f"##{letter}" for letter in alphabet]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text(
        "\n".join(dict.fromkeys([*special, *alphabet, *WORDS])) + "\n"
    )
    for task in ("SST-2", "MRPC"):
        (folder / task).mkdir()
    pairs = [(text.split(".")[0], number % 2) for number, text in enumerate(texts[:48])]
    for part in ("train", "dev"):
        rows = [f"{text}\t{label}" for text, label in pairs]
        _write_table(folder / "SST-2" / f"{part}.tsv", "sentence\tlabel", rows)
        rows = [f"{label}\t7\t8\t{text}\t{text}" for text, label in pairs]
        head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        _write_table(folder / "MRPC" / f"{part}.tsv", head, rows)
        (folder / f"{part}-v1.1.json").write_text(json.dumps(_questions()))


def make_model(folder: Path) -> None:
    """A folder of transformers, for who asks for its sizes alone; the pages make it themselves."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))


def make_programs(folder: Path) -> None:
    """A `sbatch` that queues nothing."""
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)


def _documents(seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["\n".join(random_sentence(generator) for _ in range(3)) for _ in range(NUM_DOCUMENTS)]


def _write_table(file: Path, head: str, rows: Sequence[str]) -> None:
    file.write_text("\n".join([head, *rows]) + "\n")


def _questions() -> dict[str, object]:
    answers = [{"text": "in this", "answer_start": 12}]
    asked = [{"id": f"{n}", "question": "where", "answers": answers} for n in range(4)]
    return {"data": [{"paragraphs": [{"context": "the word is in this text ", "qas": asked}]}]}
