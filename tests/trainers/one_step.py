"""`python -m tests.trainers.one_step FOLDER`: every experiment, made tiny, makes a step.

All in one process: starting one for each would take most of the time.
"""

import json
import os
import sys
from pathlib import Path

from tests.trainers.data.corpus import write_text
from trainers.compose import choices, compose
from trainers.run import loop

TINY = (
    *("data=text", "data.vocab_size=400", "objective.sequence_length=32"),
    *("model.layers=1", "model.hidden=32", "model.heads=2", "model.intermediate=64"),
    *("batch.global_size=4", "batch.micro_size=2", "train.steps=1", "eval.samples=8"),
    *("runtime.threads=1", "launch.processes=1", "train.phases=[]"),
)
PHASES = ("train.steps=2", "train.phases=[{share: 0.5, sequence_length: 16}, {share: 0.5}]")
OF_FAMILY = {"llama": ("model.kv_heads=1",), "bert": ("objective.max_predictions=8",)}


def words_of(experiment: str, folder: Path) -> list[str]:
    where = [f"data.path={folder / 'text.txt'}", f"data.cache_dir={folder / 'cache'}"]
    whole = compose([f"experiment={experiment}", *where[:1], "data=text"], 1)
    phases = PHASES if whole.train.phases else ()
    return [
        *(f"experiment={experiment}", *TINY, *where, *OF_FAMILY.get(whole.model.family, ())),
        *phases,
        f"run.dir={folder / experiment}",
    ]


def main(folder: Path) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu"}
    # One process group for all: DeepSpeed keeps what it made of the first.
    world = loop.join(compose([], 1).runtime)
    loop.join, loop.leave = lambda _: world, lambda: None
    write_text(folder / "text.txt", num_documents=60)
    for experiment in choices()["experiment"]:
        loop.run(compose(words_of(experiment, folder), 1))
        line = (folder / experiment / "metrics.jsonl").read_text().splitlines()[-1]
        print("RESULT", json.dumps({"experiment": experiment, **json.loads(line)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
