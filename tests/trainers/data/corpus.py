"""Small corpora for the tests of the data layer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainers.config import DataConfig, ObjectiveConfig
from trainers.data.documents import Trouble
from trainers.data.needs import Needs, needs_of
from trainers.data.sources import text_source
from trainers.data.store import Store, StoreWriter
from trainers.data.tokenizer import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
VOCAB_SIZE = 1000

TEXT = "the a wind river stone light house of in on runs falls sings old new grey quick slow"
WORDS = TEXT.split()


def data_config(path: Path | None, cache: Path, **changes: object) -> DataConfig:
    settings: dict = {
        "name": "text",
        "path": str(path) if path else None,
        "vocab_size": 300,
        "lowercase": True,
        "heldout_fraction": 0.2,
        "cache_dir": str(cache),
        "on_bad_text": "strict",
        "workers": 1,
    }
    return DataConfig(**(settings | changes))


def objective_config(**changes: object) -> ObjectiveConfig:
    settings: dict = {
        "name": "masked_lm",
        "sequence_length": 64,
        "mask_fraction": 0.15,
        "max_predictions": 10,
        "next_sentence": True,
        "short_fraction": 0.1,
        "packing": False,
    }
    return ObjectiveConfig(**(settings | changes))


def read_text(path: str, on_bad_text: str = "strict", column: str = "text") -> Iterator[str]:
    """The documents of a file or folder, whole."""
    trouble = Trouble(on_bad_text)
    held = ""
    for part in text_source(path, column).parts():
        for text, ends in part.read(trouble):
            held += text
            if ends:
                yield held
                held = ""
    trouble.log(path)


def sentences(length: int) -> Needs:
    """What masked words need at a sequence length."""
    return needs_of(objective_config(sequence_length=length))


def random_sentence(generator: np.random.Generator) -> str:
    words = generator.choice(WORDS, size=generator.integers(3, 12))
    return " ".join(words).capitalize() + "."


def write_text(file: Path, num_documents: int, seed: int = 0) -> Path:
    """Documents of 1 to 8 sentences of one to a line, blank lines between them."""
    generator = np.random.default_rng(seed)
    documents = [
        "\n".join(random_sentence(generator) for _ in range(generator.integers(1, 9)))
        for _ in range(num_documents)
    ]
    file.write_text("\n\n".join(documents) + "\n")
    return file


def random_store(
    folder: Path,
    num_documents: int = 50,
    seed: int = 0,
    max_sentence_tokens: int = 30,
    max_document_sentences: int = 30,
) -> Store:
    """Documents of 1 to 30 sentences of 1 to 40 tokens, cut to `max_sentence_tokens`.

    Each token tells which sentence it is from: token = 5 + number of the sentence mod 995.
    """
    generator = np.random.default_rng(seed)
    writer = StoreWriter(folder, VOCAB_SIZE, max_sentence_tokens)
    sentence = 0
    for _ in range(num_documents):
        for _ in range(generator.integers(1, max_document_sentences + 1)):
            writer.add_sentence([5 + sentence % 995] * int(generator.integers(1, 41)))
            sentence += 1
        writer.end_document()
    writer.close()
    return Store.open(folder)
