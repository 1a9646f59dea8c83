"""What was prepared, in numbers for a person."""

import math
from dataclasses import dataclass

import numpy as np

from trainers.data.store import Store


@dataclass(frozen=True)
class Statistics:
    """Counts of both parts together, except where the name says otherwise.

    `lengths`: for each power of two, the number of documents with fewer tokens than it and at
    least half of it. `num_bad`: places of bad text that were passed over.
    """

    num_documents: int
    num_sentences: int  # pieces, where documents are kept whole
    num_tokens: int
    num_heldout_documents: int
    num_heldout_tokens: int
    num_text_bytes: int  # of all text that was read
    num_bad: int
    vocab_size: int
    median_length: float  # tokens of a document
    mean_length: float
    longest: int
    lengths: dict[str, int]


def statistics(
    train: Store, heldout: Store, vocab_size: int, num_text_bytes: int, num_bad: int
) -> Statistics:
    """Count what lies in both stores."""
    stores = (train, heldout)
    lengths = np.concatenate([np.diff(s.sentence_starts[s.document_starts]) for s in stores])
    exponents, counts = np.unique(np.frexp(lengths)[1], return_counts=True)
    return Statistics(
        num_documents=len(lengths),
        num_sentences=sum(store.meta.num_sentences for store in stores),
        num_tokens=int(lengths.sum()),
        num_heldout_documents=heldout.meta.num_documents,
        num_heldout_tokens=heldout.meta.num_tokens,
        num_text_bytes=num_text_bytes,
        num_bad=num_bad,
        vocab_size=vocab_size,
        median_length=float(np.median(lengths)),
        mean_length=float(lengths.mean()),
        longest=int(lengths.max()),
        lengths={str(2 ** int(e)): int(n) for e, n in zip(exponents, counts, strict=True)},
    )


def describe(found: Statistics) -> list[str]:
    """The same as lines of text, with a bar for each length."""
    lines = [
        f"documents  {found.num_documents:,}, of which held out {found.num_heldout_documents:,}",
        f"tokens     {found.num_tokens:,}, of which held out {found.num_heldout_tokens:,}",
        f"text       {found.num_text_bytes:,} bytes, bad places passed over {found.num_bad:,}",
        f"vocabulary {found.vocab_size:,} entries",
        f"tokens of a document: median {found.median_length:,.0f}, mean {found.mean_length:,.1f}, "
        f"longest {found.longest:,}",
    ]
    most = max(found.lengths.values())
    for limit, count in found.lengths.items():
        bar = "#" * max(1, round(40 * count / most))
        lines.append(f"{int(limit) // 2:>10,} to {int(limit) - 1:<10,} {count:>12,} {bar}")
    return lines


def too_short(found: Statistics, fills: int) -> str | None:
    """What to do where half of the documents fill less than a quarter of a sequence; else None.

    Args:
        fills: tokens of a sequence that one document has to fill, see `Needs`.
    """
    median = found.median_length
    if 4 * median >= fills:
        return None
    number = math.ceil(fills / max(1, median))
    return (
        f"WARNING, documents are short: half of the {found.num_documents:,} have no more than "
        f"{median:,.0f} tokens, and a sequence has {fills}: most of it would be padding. Is each "
        f"paragraph a document? data=mix 'data.sources=[{{path: FOLDER, join_records: {number}}}]' "
        f"joins {number} of them to one; for documents that are short, several go into a sequence "
        "with objective.packing=true objective.next_sentence=false"
    )
