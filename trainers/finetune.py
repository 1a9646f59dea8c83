"""`came-finetune`: a trained BERT learns a task of GLUE or SQuAD, over several seeds.

    came-finetune model=runs/quickstart task=sst2 data=SST-2/
    came-finetune model=exported/ task=squad_v1 data=train-v1.1.json,dev-v1.1.json optimizer=adamw
    came-finetune model=runs/quickstart task=mrpc data=MRPC/ untrained=true    random weights
    came-finetune --table runs/finetune/*                                      results side by side
    came-finetune --json ...    either; the content of results.json, in a list for --table

Without data= the hub is asked. configs/finetune.yaml has all keys, their units and reasons. The
same command started again runs the seeds that are not in out=FOLDER/results.json yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError
from trainers.failures import ends_with_reader, report
from trainers.finetuning.settings import FinetuneConfig, compose_finetune, identity, model_name


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-finetune`; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(__doc__)
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    try:
        # On the way to JSON, progress is told to stderr.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            found = _compare(words[1:]) if words[:1] == ["--table"] else _finetune(words)
        if as_json:
            print(json.dumps(found, indent=1))
    except (Exception, KeyboardInterrupt) as error:
        return report(error, None, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    return 0


def _finetune(words: list[str]) -> dict[str, Any]:
    words = ["untrained=true" if word == "--untrained" else word for word in words]
    return finetune(compose_finetune(words), words)


def finetune(config: FinetuneConfig, words: Sequence[str]) -> dict[str, Any]:
    """Runs the seeds that are missing, and prints the table; the content of results.json.

    Raises ConfigError, DataError, StorageError, FolderInUseError, NonFiniteError.
    """
    from trainers.finetuning.results import owned  # first what is quick to be refused
    from trainers.finetuning.sources import read_data

    data = read_data(config)
    if not Path(config.model).is_dir():
        raise ConfigError(f"model={config.model} is no folder")
    with owned(config.folder):
        return _run(config, data, words)


def _run(config: FinetuneConfig, data: Any, words: Sequence[str]) -> dict[str, Any]:
    from trainers.finetuning.models import Start
    from trainers.finetuning.prepare import kind_of, over_sets
    from trainers.finetuning.results import FILE_NAME, TABLE_NAME, Results, table
    from trainers.finetuning.train import device_name, run_seed
    from trainers.run.console import tell
    from trainers.run.folder import provenance

    device = device_name(config.threads)
    with tempfile.TemporaryDirectory() as scratch:
        start = Start.of(Path(config.model).resolve(), Path(scratch), config.untrained)
        sums = {f"data.{name}": sha256 for name, sha256 in data.origin.items()}
        settings = {**identity(config), "model.sha256": start.sha256, **sums}
        if start.positions and config.length > start.positions:
            raise ConfigError(
                f"max_length={config.length}, and model={config.model} has {start.positions} "
                f"positions: set max_length={start.positions} or less"
            )
        kind = kind_of(config, start.tokenizer)
        baseline = over_sets(data.dev, kind.baseline)
        results = Results.open(config.folder, settings, baseline, model_name(config.model))
        for seed in range(config.seeds):
            if results.has(seed):
                tell(f"seed {seed}  is in {config.folder} already")
                continue
            origin = provenance(["came-finetune", *words], device=device, world_size=1)
            results.add(seed, {**run_seed(config, start, kind, data, seed), "origin": origin})
    print(table([results.told]), end="")
    print(f"baseline: always {kind.always}, of the samples that are judged")
    print(f"results   {config.folder / FILE_NAME}, {config.folder / TABLE_NAME}")
    return results.told


def _compare(paths: Sequence[str]) -> list[dict[str, Any]]:
    from trainers.finetuning.results import read_results, table

    if not paths:
        raise ConfigError("which results? say came-finetune --table FOLDER ...")
    found = [read_results(Path(path)) for path in paths]
    print(table(found), end="")
    return found


if __name__ == "__main__":
    sys.exit(main())
