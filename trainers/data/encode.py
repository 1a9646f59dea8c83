"""From shards of text to stores of tokens: in tasks of whole documents, joined in their order."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from trainers.data.choose import Choice
from trainers.data.shards import Shard, publish
from trainers.data.store import StoreWriter
from trainers.data.tokenizer import special_ids

PARTS = ("train", "heldout")
TASK_BYTES = 2**25  # of text: a task is lost when a process is killed
_UNITS_AT_ONCE, _BYTES_AT_ONCE = 8192, 2**20


@dataclass(frozen=True)
class Task:
    """Documents [first, last) of a shard, whose tokens go to two stores under `folder`."""

    shard: Path
    group: int
    first: int
    last: int
    num_bytes: int
    folder: Path


def tasks_of(shard: Path, group: int, root: Path) -> Iterator[Task]:
    """Cut a shard into tasks; where depends on its content alone."""
    ends = np.cumsum(Shard.open(shard).document_bytes())
    first = start = 0
    while first < len(ends):
        # All documents up to the one that fills the task.
        last = min(int(np.searchsorted(ends, start + TASK_BYTES)) + 1, len(ends))
        end, folder = int(ends[last - 1]), root / f"{shard.name}-{first:09d}"
        yield Task(shard, group, first, last, end - start, folder)
        first, start = last, end


def encode_task(task: Task, choice: Choice, tokenizer_file: Path, max_tokens: int) -> int:
    """Encode the documents of a task into the stores; returns the number of tokens.

    The tokens of a document lie end to end, however many units it has.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    # A text about BERT says "[MASK]" without meaning it: special tokens never come from text.
    tokenizer.encode_special_tokens = True
    shard = Shard.open(task.shard)
    taken, heldout = choice.taken(shard, task.group), choice.heldout(shard)
    building = task.folder.with_name(f"{task.folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    size = tokenizer.get_vocab_size()
    writers = [StoreWriter(building / part, size, max_tokens) for part in PARTS]
    strange = _special_from_text(tokenizer)
    starts = np.concatenate([[0], shard.document_ends])
    for document, unit, text_ids in _encoded(tokenizer, shard, task, taken, starts):
        ids = [strange.get(id_, id_) for id_ in text_ids] if strange else text_ids
        writer = writers[int(heldout[document])]
        writer.add_sentence(ids)
        if unit == starts[document + 1] - 1:
            writer.end_document()
    metas = [writer.close() for writer in writers]
    shutil.rmtree(task.folder, ignore_errors=True)
    publish(building, task.folder)
    return sum(meta.num_tokens for meta in metas)


def _special_from_text(tokenizer: Tokenizer) -> dict[int, int]:
    """Unigram finds "</s>" among its pieces whatever it is told: unknown stands for it then."""
    special = special_ids(tokenizer)
    if not isinstance(tokenizer.model, models.Unigram) or special.unk is None:
        return {}
    return dict.fromkeys(special.sorted(), special.unk)


def _encoded(
    tokenizer: Tokenizer, shard: Shard, task: Task, taken: np.ndarray, starts: np.ndarray
) -> Iterator[tuple[int, int, list[int]]]:
    """(document, unit, ids) of every unit of the documents that are taken."""
    documents = np.arange(task.first, task.last)[taken[task.first : task.last]]
    owners = np.repeat(documents, np.diff(starts)[documents])
    units = np.concatenate(
        [np.arange(starts[d], starts[d + 1]) for d in documents] or [np.zeros(0, np.int64)]
    )
    for begin, end in _batches(shard, units):
        # Units that follow one another are read at once; a gap is a document that is not taken.
        runs = np.split(units[begin:end], np.flatnonzero(np.diff(units[begin:end]) != 1) + 1)
        texts = [text for run in runs for text in shard.units(int(run[0]), int(run[-1]) + 1)]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for place, encoding in zip(range(begin, end), encodings, strict=True):
            yield int(owners[place]), int(units[place]), encoding.ids


def _batches(shard: Shard, units: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of `units` that are few enough, and short enough together, to be encoded at once."""
    before = np.where(units > 0, shard.unit_ends[units - 1], 0)
    sizes = shard.unit_ends[units] - before
    total = np.cumsum(sizes)
    begin = 0
    while begin < len(units):
        start = total[begin] - sizes[begin]
        fitting = int(np.searchsorted(total, start + _BYTES_AT_ONCE, side="right"))
        end = min(max(fitting, begin + 1), begin + _UNITS_AT_ONCE)
        yield begin, end
        begin = end
