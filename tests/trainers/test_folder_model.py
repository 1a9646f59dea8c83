"""A model on disk as the start of a run: its sizes, its weights, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.trainers.data.corpus import write_text
from tests.trainers.finished_run import make_run
from trainers.build import build_module
from trainers.compose import compose
from trainers.config import Config
from trainers.data.splits import open_splits
from trainers.errors import ConfigError, DataError
from trainers.export import export
from trainers.folder_shape import DROPOUTS
from trainers.pretrained import load_pretrained


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "t5"])
def exported(request, tmp_path_factory):
    """(family, the module that was exported, the folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    run, module, _ = make_run(folder, request.param)
    export(run, folder / "out")
    return request.param, module, folder / "out"


def config_of(family: str, folder: Path, *words: str) -> Config:
    recipe = "quickstart" if family == "bert" else f"quickstart_{family}"
    text = write_text(folder.parent / "text.txt", num_documents=60)
    return compose(
        [
            *(f"experiment={recipe}", "model=folder", f"model.path={folder}"),
            *(f"data.tokenizer={folder}", "objective.sequence_length=32", "batch.global_size=8"),
            *("data=text", f"data.path={text}", f"data.cache_dir={folder.parent / 'cache'}"),
            *words,
        ],
        1,
    )


def test_its_weights_are_where_the_run_starts(exported) -> None:
    family, module, folder = exported
    config = config_of(family, folder, "model.dropout=0.3")
    assert (config.model.family, config.model.layers, config.model.hidden) == (family, 1, 32)
    built = build_module(config, open_splits(config))
    wanted = dict(module.named_parameters())
    found = dict(built.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    dropouts = {getattr(part, "p", None) for part in built.modules()} - {None}
    assert dropouts == ({0.3} if family != "llama" else set())
    if family == "llama":  # drops attention, inside a function
        assert built.model.config.attention_dropout == 0.3


def test_its_dropout_is_the_folders_unless_another_is_given(exported, tmp_path) -> None:
    family, _, folder = exported
    told = json.loads((folder / "config.json").read_text())
    own = {name: 0.25 for name in DROPOUTS if name in told}
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps(told | own))
    assert config_of(family, copy).model.dropout == 0.25
    assert config_of(family, copy, "model.dropout=0").model.dropout == 0
    if len(own) > 1:
        (copy / "config.json").write_text(json.dumps(told | own | {next(iter(own)): 0.5}))
        with pytest.raises(ConfigError, match=r"0.5.*0.25.*: give one with model.dropout"):
            config_of(family, copy)
        assert config_of(family, copy, "model.dropout=0.1").model.dropout == 0.1


def test_a_size_that_is_not_the_folders_is_refused(exported) -> None:
    family, _, folder = exported
    with pytest.raises(ConfigError, match=r"model.layers=7, but model.path=.* has 1"):
        config_of(family, folder, "model.layers=7")
    with pytest.raises(ConfigError, match="model.path needs data.tokenizer=FOLDER"):
        config_of(family, folder, "data.tokenizer=null")


def test_a_vocabulary_larger_than_the_models_is_refused(exported, tmp_path) -> None:
    family, _, folder = exported
    if family != "gpt2":
        return  # one is enough
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"more{i}": first + i for i in range(20)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = config_of(family, folder, f"data.tokenizer={tmp_path / 'tokenizer.json'}")
    with pytest.raises(ConfigError, match="entries and model.path=.* knows 336: give it its own"):
        build_module(config, open_splits(config))


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (None, "must be a local folder with a config.json"),
        ("{", "must be a local folder with a config.json"),
        ('{"model_type": "mamba"}', "of type 'mamba': it must be one of bert, gpt2, llama, t5"),
        ('{"model_type": "gpt2", "n_embd": 8}', "does not say n_layer, n_head, n_positions"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, content, answer) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=answer):
        compose(["experiment=quickstart_gpt2", "model=folder", f"model.path={tmp_path}"], 1)


def test_a_folder_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^model.path has no value: give one with"):
        compose(["experiment=quickstart_gpt2", "model=folder"], 1)


def test_pickled_weights_are_not_read(exported) -> None:
    family, _, folder = exported
    config = config_of(family, folder)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    try:
        with pytest.raises(ConfigError, match=r"has no \*.safetensors"):
            load_pretrained(config.model, seed=0)
        weights.write_bytes(b"garbage")
        with pytest.raises(DataError, match="cannot be read"):
            load_pretrained(config.model, seed=0)
    finally:
        (folder / "pytorch_model.bin").rename(weights)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def model_config(family: str, folder: Path):
    words = [f"experiment=quickstart{'' if family == 'bert' else '_gpt2'}", "model=folder"]
    words += [f"model.path={folder}", f"data.tokenizer={folder}"]
    return compose([*words, "objective.sequence_length=32"], 1).model


def test_a_body_gets_the_heads_it_lacks_and_this_is_said(tmp_path, caplog) -> None:
    body = BertModel(BertConfig(**SMALL, intermediate_size=32))
    body.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        one = load_pretrained(model_config("bert", tmp_path), seed=3)
    assert "cls.predictions" in caplog.text and "start at random" in caplog.text
    assert torch.equal(one.bert.pooler.dense.weight, body.pooler.dense.weight)
    again = load_pretrained(model_config("bert", tmp_path), seed=3)
    name = "cls.predictions.transform.dense.weight"
    assert torch.equal(one.state_dict()[name], again.state_dict()[name])  # the same on all ranks


def test_missing_layers_are_refused(tmp_path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50))
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"n_layer": 3}))
    with pytest.raises(DataError, match="lacks transformer.h.2."):
        load_pretrained(model_config("gpt2", tmp_path), seed=0)
