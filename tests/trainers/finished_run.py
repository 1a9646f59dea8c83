"""A run folder as a finished run leaves it, without the run."""

from dataclasses import asdict
from pathlib import Path

import yaml
from tokenizers import Tokenizer
from torch import nn

from came.pieces import Entry, Piece
from tests.trainers.data.corpus import write_text
from tests.trainers.run.checkpoints import save_entries
from trainers.build import build_module
from trainers.compose import compose
from trainers.data.splits import open_splits

SIZES = (
    *("data=text", "data.vocab_size=400", "objective.sequence_length=32", "batch.global_size=8"),
    *("model.layers=1", "model.hidden=32", "model.heads=2", "model.intermediate=64"),
)
RECIPES = {
    "bert": ("experiment=quickstart", "objective.max_predictions=8", "model.unigram_bias=false"),
    "gpt2": ("experiment=quickstart_gpt2",),
    "llama": ("experiment=quickstart_llama", "model.kv_heads=1"),
    "t5": ("experiment=quickstart_t5",),
}


def make_run(folder: Path, family: str) -> tuple[Path, nn.Module, Tokenizer]:
    """The folder of a run whose model never learned; its module and vocabulary."""
    text = write_text(folder / "text.txt", num_documents=60)
    where = (f"data.path={text}", f"data.cache_dir={folder / 'cache'}")
    run = folder / "run"
    config = compose([*RECIPES[family], *SIZES, *where, f"run.dir={run}"], 1)
    data = open_splits(config)
    module = build_module(config, data)
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    (run / "tokenizer.json").write_text(data.tokenizer.to_str())
    (run / "model.json").write_text(module.model.config.to_json_string())
    save(module, run / "checkpoints", 3)
    return run, module, data.tokenizer


def save(module: nn.Module, checkpoints: Path, step: int) -> Path:
    """A commit of the parameters of `module`, as a rank alone writes it."""
    entries = [
        Entry(name, "param", tuple(p.shape), p.dtype, False, (Piece(0, p.detach().view(-1)),), None)
        for name, p in module.named_parameters()
    ]
    return save_entries(checkpoints, step, entries, identity={}, setting={}, extra={})
