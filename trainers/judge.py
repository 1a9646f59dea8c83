"""`came-eval`: what a trained model makes of text that it has not seen.

    came-eval run.dir=runs/quickstart                    the run's own held-out samples
    came-eval run.dir=exported/ data.path=texts/         a model on disk, and all of any text
    came-eval run.dir=runs/quickstart eval.samples=4096 batch.micro_size=64
    came-eval run.dir=runs/quickstart --json             for a machine

run.dir is a run folder, one of its checkpoints, or what came-export wrote.  Of a run of phases the
last one counts: its sequences are as long as those that the run itself was judged by at its end.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.compose import problems_of_words
from trainers.config import Config
from trainers.data.splits import Splits, open_splits, open_whole
from trainers.errors import ConfigError, DataError
from trainers.failures import ends_with_reader, report
from trainers.finished import Place, read_module, read_settings, read_shortest, read_tokenizer
from trainers.flags import FLAGS
from trainers.run.distributed import World
from trainers.run.evaluate import Evaluator
from trainers.run.folder import TOKENIZER_FILE
from trainers.run.metrics import number
from trainers.typed import message

ALL = 2**31


def evaluate(words: Sequence[str]) -> dict[str, float]:
    """The metrics of the run that `words` name, by name, on the samples that they name."""
    given = dict(word.partition("=")[::2] for word in words)
    problems = problems_of_words(words, FLAGS["came-eval"])
    if not given.get("run.dir"):
        problems.append("which run? say came-eval run.dir=FOLDER")
    if problems:
        raise ConfigError(message(problems))
    place = Place.of(Path(given["run.dir"]).expanduser().resolve())
    changes: dict[str, Any] = {}
    if "data.path" in given:
        # The vocabulary is the model's, whatever the text.
        tokenizer = str(place.folder / TOKENIZER_FILE)
        changes = {"data.name": "text", "data.tokenizer": tokenizer, "eval.samples": ALL}
        changes |= {"data.packages": [], "data.sources": [], "data.hub": None}
    config = read_settings(place, changes, words)
    if place.commit is None and "data.path" not in given and config.data.name in ("text", "mix"):
        raise ConfigError(
            f"{place.folder} was exported, which does not tell where its text lies: give one with "
            "data.path=..., or name the run folder"
        )
    own = "data.path" not in given
    data = open_splits(config, read_shortest(place)) if own else open_whole(config)
    if data.tokenizer.get_vocab() != read_tokenizer(place).get_vocab():
        raise DataError(
            f"the text of {config.data.name} has another vocabulary here than the run had: "
            "give a text with data.path=..."
        )
    return _measure(config, data, place)


def _measure(config: Config, data: Splits, place: Place) -> dict[str, float]:
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    world = World(0, 1, torch.device("cuda" if on_gpu else "cpu"))
    module = read_module(place, config).to(world.device)
    return Evaluator(config, data, world)(module)


@ends_with_reader
def main() -> None:
    """The command `came-eval`."""
    words = [word for word in sys.argv[1:] if word != "--json"]
    if not words or set(words) & {"-h", "--help"}:
        print(__doc__)
        return
    try:
        found = evaluate(words)
        if "--json" in sys.argv:
            print(json.dumps({name: number(value) for name, value in found.items()}))
            return
        for name, value in found.items():
            print(f"{name:>32}  {value:.6g}")
    except Exception as error:
        sys.exit(report(error, None, verbose=False, words=True))


if __name__ == "__main__":
    main()
