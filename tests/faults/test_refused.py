"""Whole starts that cannot become a run, and what is read all the same (make test-faults)."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import STARTING, TINY, Ended, Started, learned, state
from tests.trainers.run.checkpoints import rewrite_manifest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

WITHIN = 15.0  # seconds: an import of torch on a busy machine
RANKS = "per rank; "  # the first words of rank 0, which no refusal below may come after

CONFIGURATION: dict[str, tuple[list[str], list[str]]] = {
    "21 float16": (["runtime.dtype=float16"], ["must be one of float32, bfloat16"]),
    "32 a key": (["trian.lr=1"], ["unknown key 'trian.lr'"]),
    "32 a key of DeepSpeed's": (
        ["deepspeed.zero_optimization.stge=1"],
        ["DeepSpeed has no such setting", "did you mean 'deepspeed.zero_optimization.stage'?"],
    ),
    "33 values": (
        ["optimizer.lr=abc", "objective.mask_fraction=2", "schedule.warmup_fraction=3"],
        ["3 problems", "optimizer.lr must be a number", "mask_fraction", "warmup_fraction"],
    ),
    "33 length": (["objective.sequence_length=128"], ["model.max_positions (now 64)"]),
    "34 no value": (["run.seed=???"], ["run.seed has no value"]),
    "34 interpolation": (["run.name=${nope}"], ["'${...}' is not read on the command line"]),
    "34 group": (["model=nope"], ["no model is named 'nope'; choose one of bert_"]),
    "36 batch": (["batch.global_size=5"], ["6 x 2 processes = 12", "valid sizes are 12 and 24"]),
    "47 a name that leads out": (["run.name=../a"], ["run.name"]),
    "48 remote code": (["+trust_remote_code=true"], ["unknown key 'trust_remote_code'"]),
    "50 a target": (["+model._target_=os.system"], ["unknown key 'model._target_'"]),
    "50 the environment": (["run.name=${oc.env:HOME}"], ["is not read on the command line"]),
}


@pytest.mark.parametrize("case", CONFIGURATION)
def test_configuration(case: str, corpus: Path, tmp_path: Path) -> None:
    """Rows 21, 32 to 34, 36, 47, 48 and 50: told all at once, and nothing is made."""
    words, said = CONFIGURATION[case]
    refused(Started(corpus, tmp_path / "run", *words), 2, said)
    assert not (tmp_path / "run").exists()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def page(number: int) -> str:
    return f"Page {number} is about the wind. It has a second sentence.\nAnd a third one {number}."


PAGES = [page(number) for number in range(200)]
TEXT = "\n\n".join(PAGES).encode()
# What stands in a file, its name, and what is said of it.
DATA: dict[str, tuple[str, bytes | None, list[str]]] = {
    "23 missing": ("text.txt", None, ["text.txt: no such file or folder"]),
    "24 empty": ("text.txt", b"", ["text.txt: there is no document in it"]),
    "24 blank": ("text.txt", b"\n" * 1000, ["text.txt: there is no document in it"]),
    "25 latin-1": ("text.txt", TEXT + "\n\ncaf\xe9".encode("latin-1"), ["byte "]),
    "25 NUL": ("text.txt", TEXT + b"\n\na\0b", ["NUL"]),
    "28 JSON": ("text.jsonl", lines(*PAGES) + b"{]\n", ["text.jsonl", "201"]),
    "28 key": ("text.jsonl", lines(*PAGES) + b'{"body": ""}\n', ["text.jsonl", "201", "text"]),
    "28 archive": ("text.jsonl.gz", gzip.compress(lines(*PAGES))[:-200], ["text.jsonl.gz"]),
    "28 parquet": ("text.parquet", b"PAR1" + bytes(100) + b"PAR1", ["text.parquet"]),
    "29 too little": ("text.txt", "\n\n".join(PAGES[:3]).encode(), ["text.txt: 3 documents"]),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, tmp_path: Path) -> None:
    """Rows 23 to 25, 28 and 29: 3, with the file and the place, before any rank trains."""
    name, content, said = DATA[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run = Started(tmp_path, tmp_path / "run", f"data.path={tmp_path / name}")
    refused(run, 3, said)


def test_a_batch_that_is_more_than_there_is(tmp_path: Path) -> None:
    """Row 29 of another text: as many samples as there are, and as many as are asked for."""
    (tmp_path / "text.txt").write_bytes(TEXT)
    run = Started(tmp_path, tmp_path / "run", "batch.global_size=4800")
    refused(run, 3, ["fewer than batch.global_size=4800"])


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every file can be read")
def test_data_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    (tmp_path / "text.txt").chmod(0)
    refused(Started(tmp_path, tmp_path / "run"), 3, ["text.txt", "Permission denied"])


def test_bad_texts_are_skipped_where_that_is_asked(tmp_path: Path) -> None:
    """Rows 25, 26 and 28: counted, and trained without."""
    bad = [b"{]\n", b'{"text": "caf\xe9"}\n', lines("", "One sentence.")]
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines(*PAGES) + b"".join(bad))
    words = (f"data.path={path}", "data.on_bad_text=skip", STEPS)
    ended = Started(tmp_path, tmp_path / "run", *words).end()
    ended.must(
        code=0,
        within=STARTING,
        words=["on_bad_text=skip was applied 3 times", RANKS],
        commits=[14, 12],
    )


def test_tokenizers(corpus: Path, tmp_path: Path) -> None:
    """Row 35: without the mark of a mask nothing can be masked."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]) + "\n")
    words = (f"data.tokenizer={vocabulary}",)
    settings = [word for word in TINY if not word.startswith("data.vocab_size")]
    run = Started(corpus, tmp_path / "run", *words, settings=settings)
    refused(run, 2, ["the vocabulary of data.tokenizer has no [MASK]"])


def test_two_runs_make_one_cache(corpus: Path, tmp_path: Path) -> None:
    """Row 30: one makes it, the other waits and takes it; both learn the same."""
    shutil.copy(corpus / "text.txt", tmp_path / "text.txt")
    runs = [Started(tmp_path, tmp_path / name, STEPS) for name in ("one", "other")]
    for run in runs:
        run.end().must(code=0, within=STARTING, words=[], commits=[14, 12])
    assert learned(tmp_path / "one") == learned(tmp_path / "other")


def test_a_folder_that_is_a_file(corpus: Path, tmp_path: Path) -> None:
    """Row 44."""
    (tmp_path / "run").write_text("mine")
    ended = Started(corpus, tmp_path / "run").end()
    assert (tmp_path / "run").read_text() == "mine"
    ended.must(code=6, within=WITHIN, words=[str(tmp_path / "run")], commits=[])


def lead_out(folder: Path) -> None:
    """The data behind a link out of the run, with the right content."""
    shutil.move(folder / "rank-00000.safetensors", folder.parents[2] / "kept")
    (folder / "rank-00000.safetensors").symlink_to(folder.parents[2] / "kept")


def name_another(folder: Path) -> None:
    """The same by the name in the manifest."""
    shutil.move(folder / "rank-00000.safetensors", folder.parents[2] / "kept")

    def change(body: dict[str, Any]) -> None:
        body["files"]["../../../kept"] = body["files"].pop("rank-00000.safetensors")

    rewrite_manifest(folder, change)


def from_the_future(folder: Path) -> None:
    rewrite_manifest(folder, lambda body: body.update(schema=99))


def garble(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lead_out, "rank-00000.safetensors is not a regular file"),
        (name_another, "'../../../kept' is not a plain file name"),
        (from_the_future, "manifest.json has schema 99"),
        (garble, "manifest.json is not a manifest"),
    ],
)
def test_checkpoints(
    damage: Callable[[Path], None], reason: str, corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Rows 12, 47 and 53: refused with the reason; the one before is taken, and ends the same."""
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    damage(run_dir / "checkpoints" / "step-00000014")
    ended = Started(corpus, run_dir, STEPS).end()
    words = [f"step-00000014: {reason}", "goes on from step 12"]
    ended.must(code=0, within=60, words=words, commits=[14, 12])
    aside = list((run_dir / "checkpoints").glob("step-00000014.refused-*"))
    assert len(aside) == 1, "it may be good for another program, or on another day"
    assert state(run_dir, 14) == state(unbroken, 14)


@pytest.mark.parametrize("words", [["launch.processes=1"], ["launch.processes=4", "zero.stage=3"]])
def test_other_ranks_and_stages(
    words: list[str], corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Rows 14 and 15: what was saved by 2 ranks at ZeRO 1 goes on."""
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    ended = Started(corpus, run_dir, "train.steps=16", *words).end()
    ended.must(code=0, within=STARTING, words=["goes on from step 14"], commits=[16, 15])


def refused(run: Started, code: int, said: list[str]) -> Ended:
    """The end of a start from which no rank may have come, and nothing may be committed."""
    ended = run.end().must(code=code, within=WITHIN, words=said, commits=[])
    assert RANKS not in ended.output
    assert "Traceback" not in ended.output
    assert len(ended.last_words) == 1, ended.output
    return ended
