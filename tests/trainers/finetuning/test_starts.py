"""Models that fine-tuning can start at as they are, or cannot: positions and padding."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from trainers.errors import ConfigError
from trainers.finetune import main
from trainers.finetuning.models import Start
from trainers.finetuning.results import read_results

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}


def folder_with(folder: Path, config: PreTrainedConfig, **tokens: str) -> Path:
    """A model's folder without weights, and words as tokens; `tokens` are by their roles."""
    vocabulary = {"[UNK]": 0} | {word: at for at, word in enumerate("abc", start=3)}
    vocabulary |= {token: at for at, token in enumerate(tokens.values(), start=1)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=plain, **tokens).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return folder


def words(folder: Path, out: Path, *more: str) -> list[str]:
    rows = ["sentence\tlabel", "a b\t1", "c\t0"]
    out.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (out / name).write_text("\n".join(rows) + "\n")
    given = [f"model={folder}", "task=sst2", f"data={out}", f"out={out / 'out'}", *more]
    return [*given, "seeds=1", "epochs=1", "threads=1", "untrained=true"]


def test_a_model_with_fewer_positions_than_a_sample_has_tokens_is_refused(tmp_path, capsys):
    """The first batch ended in a traceback of an index out of range."""
    config = BertConfig(**SMALL, intermediate_size=8, max_position_embeddings=64)
    folder = folder_with(tmp_path / "bert", config, pad_token="[PAD]")
    asked = words(folder, tmp_path / "data")
    assert main(asked) == ConfigError.exit_code
    told = capsys.readouterr().err
    assert f"max_length=128, and model={folder} has 64 positions: set max_length=64" in told
    left = [path.name for path in (tmp_path / "data" / "out").iterdir()]
    assert left == [".results.lock"], "nothing has been run"
    assert main([*asked, "max_length=64"]) == 0


@pytest.mark.parametrize(
    ("config", "limit", "positions"),
    [
        (BertConfig(max_position_embeddings=64), None, 64),
        (GPT2Config(n_positions=96), None, 96),
        # RoBERTa's first two positions are for padding: its tokenizer alone says so.
        (BertConfig(max_position_embeddings=514), 512, 512),
        (T5Config(), 512, None),  # relative: any length
    ],
)
def test_the_positions_of_a_model(tmp_path, config, limit, positions) -> None:
    folder = folder_with(tmp_path / "model", config, pad_token="[PAD]")
    if limit:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": limit}))
    assert Start.of(folder, tmp_path).positions == positions


def test_the_end_of_a_text_pads_where_nothing_else_does(tmp_path) -> None:
    """GPT-2's folder has no token for padding: `Asking to pad but the tokenizer ...`"""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, n_positions=16)
    folder = folder_with(tmp_path / "gpt2", config, eos_token="<|endoftext|>")
    assert main(words(folder, tmp_path / "data", "max_length=16")) == 0
    assert read_results(tmp_path / "data" / "out")["seeds"]["0"]["steps"] == 1


def test_a_tokenizer_without_anything_to_pad_with_is_refused(tmp_path) -> None:
    folder = folder_with(tmp_path / "gpt2", GPT2Config())
    with pytest.raises(ConfigError, match="no token for padding and no end of a text.*pad_token"):
        Start.of(folder, tmp_path)
