"""How fast batches are made, against the usual way; and how soon a run has its first batch again.

    python -m scripts.bench_data --out runs/bench/data.json               on the documentation here
    python -m scripts.bench_data data=text data.path=wiki/ --rounds 40    on a text of your own
    python -m scripts.bench_data --samples 1e8 --folder /scratch          the resume, at full size
    python -m scripts.bench_data --table data.json > docs/benchmarks_data.md

The usual way is that of transformers' examples run_mlm.py and run_clm.py: `datasets` with their
columns, torch's DataLoader in its own process, their collators. One thread each, the same tokens,
in turns of some batches.
At 10^8 samples the resume needs 12 GB of memory once, and 4 GB of disk (the tokens are a hole).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from scripts.bench.clock import HostClock, interleave, paired, spread
from scripts.bench.machine import describe_machine
from trainers.compose import compose
from trainers.config import Config, ObjectiveConfig
from trainers.data.batches import Batches
from trainers.data.causal import CausalBatches
from trainers.data.masked import MaskedLMBatches
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, prepare
from trainers.data.store import FORMAT, Store, StoreMeta

ROWS = 256  # in a batch
BATCHES = 10  # in a turn
LENGTH = 128
TARGET_RATIO, TARGET_SECONDS = 50.0, 1.0
CAUSAL = ("experiment=quickstart_gpt2", f"objective.sequence_length={LENGTH}")
MASKED = (
    *("experiment=quickstart", f"objective.sequence_length={LENGTH}"),
    *("objective.max_predictions=20", "objective.next_sentence=false"),
    "objective.short_fraction=0",
)
OURS = {"masked words": MASKED, "causal": CAUSAL}


def main(words: list[str] | None = None) -> None:
    options, overrides = parse(words)
    if options.table:
        print("\n".join(document(json.loads(options.table.read_text()))))
        return
    record = run(options, overrides)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(document(record)))


def parse(words: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--samples", type=float, default=1e7, help="of the store that is resumed")
    parser.add_argument("--folder", type=Path, help="where that store may lie for a while")
    parser.add_argument("--out", type=Path, metavar="JSON", help="keep every single time here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a run that was kept")
    return parser.parse_known_args(words)


def run(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Everything that is measured in one run, and what it was measured on."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "loaders": []}
    for name, setting in OURS.items():
        config = compose([*setting, *overrides], 1)
        record["loaders"].append(measure_loader(name, config, options.rounds))
    record["resume"] = []
    for name, setting in OURS.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            objective = compose(setting, 1).objective
            found = measure_resume(name, objective, int(options.samples), Path(folder))
            record["resume"].append(found)
    return record


def measure_loader(name: str, config: Config, rounds: int) -> dict[str, Any]:
    """Tokens per second that ours and theirs make from the same tokens."""
    prepared = prepare(config.data, needs_of(config.objective))
    batches = open_batches(prepared.train, prepared, config.objective)
    theirs = usual_way(prepared, batches, is_masked=name == "masked words")
    sources = {"ours": ours(batches), "theirs": theirs}
    steps: dict[str, Callable[[], int]] = {
        key: partial(turn, source) for key, source in sources.items()
    }
    # How many tokens come out, without those of padding; the same in each turn but for padding.
    tokens = {key: step() for key, step in steps.items()}
    times = interleave(steps, rounds, HostClock(), progress=progress)
    factor = tokens["ours"] / tokens["theirs"]
    return {
        "name": name,
        "num_samples": batches.num_samples,
        "tokens": tokens,
        "seconds": times,
        "ratio": paired(times["theirs"], times["ours"], factor),
    }


def turn(source: Iterator[int]) -> int:
    """Tokens of some batches, one after the other."""
    return sum(islice(source, BATCHES))


def open_batches(store: Store, prepared: Prepared, objective: ObjectiveConfig) -> Batches:
    special = prepared.special
    if objective.name == "causal_lm":
        assert special.eos is not None
        return CausalBatches(store, special.eos, objective, seed=0)
    size = prepared.tokenizer.get_vocab_size()
    return MaskedLMBatches(store, special, size, objective, seed=0)


def ours(batches: Batches) -> Iterator[int]:
    first = 0
    while True:
        batch = batches.batch(np.arange(first, first + ROWS))
        first += ROWS
        yield num_tokens({key: torch.from_numpy(value) for key, value in batch.items()})


def usual_way(prepared: Prepared, batches: Batches, is_masked: bool) -> Iterator[int]:
    """The same samples, without masks, in a dataset of which a collator makes batches."""
    number = min(batches.num_samples, 40 * ROWS)
    rows = []
    for first in range(0, number, ROWS):
        batch = batches.batch(np.arange(first, min(first + ROWS, number)))
        ids = batch["input_ids"]
        lengths = batch.get("attention_mask", np.ones_like(ids)).sum(axis=1)
        rows += [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    dataset, collator = Dataset.from_dict(columns(rows, is_masked)), default_data_collator
    if is_masked:
        pad = prepared.tokenizer.id_to_token(prepared.special.pad)
        special = {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=prepared.tokenizer, pad_token=pad, **special
        )
        collator = DataCollatorForLanguageModeling(tokenizer)
    loader = DataLoader(dataset, batch_size=ROWS, shuffle=True, collate_fn=collator, drop_last=True)  # type: ignore[arg-type]
    while True:
        yield from map(num_tokens, loader)


def columns(rows: list[list[int]], is_masked: bool) -> dict[str, list[list[int]]]:
    """What a tokenizer returns in the examples, and causal labels as they add them."""
    found = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    if not is_masked:
        return found | {"labels": rows}
    special = [[1] + [0] * (len(row) - 2) + [1] for row in rows]
    return found | {
        "token_type_ids": [[0] * len(row) for row in rows],
        "special_tokens_mask": special,
    }


def num_tokens(batch: Any) -> int:
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def measure_resume(
    name: str, objective: ObjectiveConfig, num_samples: int, folder: Path
) -> dict[str, Any]:
    """Seconds from nothing to the last batch of a store, the first time and from then on."""
    make_store(folder / "store", num_samples, by_sentence=objective.name == "masked_lm")
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        batches = blank_batches(Store.open(folder / "store"), objective)
        batches.batch(np.arange(batches.num_samples - ROWS, batches.num_samples))
        seconds.append(time.perf_counter() - begin)
        progress(f"{name}: {batches.num_samples:,} samples, {seconds[-1]:.3f} s")
    return {"name": name, "num_samples": batches.num_samples, "seconds": seconds}


def blank_batches(store: Store, objective: ObjectiveConfig) -> Batches:
    from trainers.data.tokenizer import SpecialIds

    if objective.name == "causal_lm":
        return CausalBatches(store, 0, objective, seed=0)
    special = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
    return MaskedLMBatches(store, special, 30_000, objective, seed=0)


def make_store(folder: Path, num_samples: int, by_sentence: bool) -> None:
    """A store of as many samples, in documents of a hundred; its tokens are a hole in the disk."""
    folder.mkdir()
    num_documents = num_samples // 100
    size = LENGTH - 2 if by_sentence else LENGTH * 100
    num_sentences = num_samples if by_sentence else num_documents
    with open(folder / "tokens.bin", "wb") as file:
        file.truncate(2 * size * num_sentences)
    np.save(folder / "sentence_starts.npy", size * np.arange(num_sentences + 1))
    per_document = num_sentences // num_documents
    np.save(folder / "document_starts.npy", per_document * np.arange(num_documents + 1))
    meta = StoreMeta(
        FORMAT, "uint16", size * num_sentences, num_sentences, num_documents, size, "none"
    )
    (folder / "meta.json").write_text(json.dumps(vars(meta)))


def document(record: dict[str, Any]) -> Iterator[str]:
    """The run as markdown."""
    yield "# Benchmarks of the data\n"
    yield "| what | target | measured | met? |\n|---|---|---|---|"
    for found in record["loaders"]:
        ratio = found["ratio"]
        yield (
            f"| {found['name']}: tokens/s of one thread, ours / the usual way "
            f"| >= {TARGET_RATIO:.0f} | {ratio['median']:.1f} ({ratio['q1']:.1f} to "
            f"{ratio['q3']:.1f}, n = {ratio['n']}) | {met(ratio['median'] >= TARGET_RATIO)} |"
        )
    for found in record["resume"]:
        later = spread(found["seconds"][1:])
        is_met = met(later["median"] <= TARGET_SECONDS)
        yield (
            f"| {found['name']}: a run of {found['num_samples']:,} samples opened, to its last "
            f"batch | <= {TARGET_SECONDS:.0f} s | {later['median']:.3f} s (n = {later['n']}; the "
            f"very first time {found['seconds'][0]:.1f} s) | {is_met} |"
        )
    yield "\n| | tokens/s, median | in a turn |\n|---|---|---|"
    for found in record["loaders"]:
        for key in ("ours", "theirs"):
            median = spread(found["seconds"][key])["median"]
            tokens = found["tokens"][key]
            yield f"| {found['name']}, {key} | {tokens / median:,.0f} | {tokens:,} |"
    yield "\n| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in record["machine"].items())


def met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
