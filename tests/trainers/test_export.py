"""What is exported is what was trained, and the tools of transformers take it from there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertForPreTraining,
    GenerationConfig,
    pipeline,
)

from tests.trainers.finished_run import RECIPES, make_run, save
from trainers.compose import compose
from trainers.errors import CheckpointError, DataError, StorageError
from trainers.export import export, main
from trainers.fidelity import markdown
from trainers.model_card import model_card
from trainers.phases import phase_configs


@pytest.fixture(scope="module", params=RECIPES)
def exported(request, tmp_path_factory):
    """(family, run folder, its module, the exported folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    run, module, _ = make_run(folder, request.param)
    assert main([str(run), str(folder / "out")]) == 0
    return request.param, run, module, folder / "out"


def auto(family: str, folder: Path):
    kinds = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
    kind = kinds.get(family, AutoModelForCausalLM)
    return kind.from_pretrained(folder, local_files_only=True)


def test_the_model_is_the_trained_one_and_what_is_tied_stays_tied(exported) -> None:
    family, _, module, out = exported
    loaded = (
        BertForPreTraining.from_pretrained(out, local_files_only=True)
        if family == "bert"
        else auto(family, out)
    )
    state, wanted = loaded.state_dict(), module.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    head = loaded.get_output_embeddings()
    assert head.weight is loaded.get_input_embeddings().weight
    with safe_open(out / "model.safetensors", framework="pt") as file:
        saved = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert saved == sum(param.numel() for param in module.parameters())  # each once


def test_logits_are_those_of_the_run(exported) -> None:
    family, _, module, out = exported
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    inputs = tokenizer("the old stone house of the river", return_tensors="pt")
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    model = auto(family, out).eval()
    with torch.no_grad():
        ours = module.eval().model(**inputs)
        found = model(**inputs).logits
    torch.testing.assert_close(found, ours.get("prediction_logits", ours.get("logits")))


def test_the_tokenizer_speaks_as_in_training(exported) -> None:
    family, run, _, out = exported
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    ids = tokenizer("the river", "a house")["input_ids"]
    assert len(tokenizer) == Tokenizer.from_file(str(run / "tokenizer.json")).get_vocab_size()
    if family == "bert":
        text = tokenizer.convert_ids_to_tokens(ids)
        assert text == ["[CLS]", "the", "river", "[SEP]", "a", "house", "[SEP]"]
        assert tokenizer("the", "a")["token_type_ids"] == [0, 0, 0, 1, 1]
    elif family == "t5":
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 2
        assert tokenizer("<extra_id_0> a")["input_ids"][0] not in (None, tokenizer.unk_token_id)
    else:
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.decode(tokenizer("the river")["input_ids"]) == "the river"


def test_a_template_that_training_did_not_use_stays_behind(tmp_path: Path) -> None:
    run, _, _ = make_run(tmp_path, "llama")
    told = json.loads((run / "tokenizer.json").read_text())
    assert told["post_processor"] is None or told["post_processor"]["type"] == "ByteLevel"
    end = {"id": "<|endoftext|>", "type_id": 0}
    around = [{"SpecialToken": end}, {"Sequence": {"id": "A", "type_id": 0}}]
    ids = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    told["post_processor"] = {
        **{"type": "TemplateProcessing", "single": around, "pair": around, "special_tokens": ids}
    }
    (run / "tokenizer.json").write_text(json.dumps(told))
    export(run, tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    trained = Tokenizer.from_file(str(run / "tokenizer.json"))
    assert trained.encode("the river").ids[0] == 0
    assert read("the river")["input_ids"] == trained.encode("the river").ids[1:]


def test_how_its_start_writes_text_is_kept(tmp_path: Path) -> None:
    run, _, _ = make_run(tmp_path, "gpt2")
    own = GenerationConfig(temperature=0.7, do_sample=True, eos_token_id=[0, 5])
    (run / "generation_config.json").write_text(own.to_json_string())
    export(run, tmp_path / "out")
    kept = GenerationConfig.from_pretrained(tmp_path / "out", local_files_only=True)
    assert (kept.temperature, kept.do_sample, kept.eos_token_id) == (0.7, True, [0, 5])


def test_a_card_tells_what_the_model_is(exported, tmp_path: Path) -> None:
    family, run, _, out = exported
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: ")
    assert "| trained | 3 steps |" in card and "| optimizer | came, learning rate 0.0003" in card
    size = yaml.safe_load((run / "config.yaml").read_text())["batch"]["global_size"]
    assert f"| batch | {size} sequences |" in card and size > 4
    told = (out / "pretraining.yaml").read_text()
    assert str(tmp_path) not in card + told  # where it lay is nobody's business
    assert str(run.parent) not in card + told and str(Path.home()) not in told
    assert yaml.safe_load(told)["data"]["path"] == "text.txt"
    export(out, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_the_card_has_results_and_the_distance_to_the_paper(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"step": 2, "eval/loss": 3.0},
        {"step": 4, "eval/loss": 2.5},
        {"step": 6, "train/lr": 1},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    start = {"commit": "abc", "dirty": True, "device": "a|b", "versions": {"torch": "2"}}
    (run / "provenance.json").write_text(json.dumps({"starts": [start]}))
    config = compose(["experiment=bert_large_32k", "data.path=/home/me/wiki/"], 2)
    (run / "fidelity.md").write_text(str(markdown(config)))  # as a run does
    card = model_card(config, run, 5)
    assert "| step | 4 |\n| eval/loss | 2.5 |" in card
    assert "| commit | abc with changes |" in card and "| device | a\\|b |" in card
    assert "\n## Fidelity: bert_large_32k with came, and the paper\n" in card
    assert "\n### Deviations\n" in card and "| data | wiki |" in card
    assert "/home/me" not in card
    assert "| eval/loss | 3 |" in model_card(config, run, 3)


def test_a_card_has_no_folder_of_the_machine(tmp_path: Path) -> None:
    """The report on the paper once told the whole path of the text."""
    words = ["data.path=/home/me/wiki/", "data.tokenizer=/home/me/words/vocab.txt"]
    config = compose(["experiment=bert_large_32k", *words], 2)
    page = str(markdown(config))
    whole = page.replace("| Wikipedia | wiki |", "| Wikipedia | /home/me/wiki/ |")
    assert whole != page
    for report in (page, whole):  # as a run writes it, and as one of before did
        (tmp_path / "fidelity.md").write_text(report)
        card = model_card(config, tmp_path, 5)
        assert "| data.path | Wikipedia | wiki |" in card and "| data | wiki |" in card
        assert "/home" not in card and "me/" not in card
    (tmp_path / "fidelity.md").unlink()
    words = ["data=hub", "data.hub=/home/me/wiki"]
    card = model_card(compose(["experiment=quickstart", *words], 2), tmp_path, 5)
    assert "| data | wiki |" in card and "/home/me" not in card


def test_a_card_of_a_run_without_its_report_says_so(tmp_path: Path) -> None:
    """Settings that are read back have no phases, no ramp and one process: they tell nothing."""
    config = compose(["experiment=bert_large_32k", "data.path=wiki/"], 2)
    assert "\n## Fidelity\n\nThe run folder has no fidelity.md" in model_card(config, tmp_path, 5)
    quickstart = compose(["experiment=quickstart"], 2)
    assert "Fidelity" not in model_card(quickstart, tmp_path, 5)


def test_the_card_of_phases_compares_all_of_them(tmp_path: Path) -> None:
    """It once compared the last phase with the paper: every setting of it was a deviation."""
    config = compose(["experiment=bert_large_32k_two_phase", "data.path=wiki/"], 2)
    (tmp_path / "fidelity.md").write_text(str(markdown(config)))
    last = replace(phase_configs(config)[-1], train=replace(config.train, phases=()))
    phases = [{"share": 0.9, "sequence_length": 128, "micro_size": None}, {"share": 0.1}]
    card = model_card(last, tmp_path, 5, phases)
    assert "| phases | 0.9 of the steps: sequence length 128; 0.1 of the steps: as above |" in card
    paper = str(markdown(config)).split("\n\n", 1)[1]
    assert paper.replace("\n## ", "\n### ").strip() in card
    assert markdown(last) != markdown(config)


def test_pipelines_work(exported) -> None:
    family, _, _, out = exported
    if family == "bert":
        fill = pipeline("fill-mask", model=str(out))
        answers = fill(f"the old {fill.tokenizer.mask_token} of the river")
        assert len(answers) == 5 and all(0 < answer["score"] < 1 for answer in answers)
        return
    if family == "t5":  # its pipeline has gone from transformers 5
        tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
        inputs = tokenizer("the old <extra_id_0> river", return_tensors="pt")
        written = auto(family, out).generate(**inputs, max_new_tokens=5, min_new_tokens=5)
        assert written.shape == (1, 6)
        return
    write = pipeline("text-generation", model=str(out))
    (answer,) = write("the old house", max_new_tokens=5, do_sample=False, min_new_tokens=5)
    assert answer["generated_text"].startswith("the old house")
    assert len(answer["generated_text"]) > len("the old house")


def test_the_newest_good_checkpoint_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    run, module, _ = make_run(tmp_path, "gpt2")
    old = module.model.transformer.wte.weight.detach().clone()
    with torch.no_grad():
        module.model.transformer.wte.weight += 1
    newer = save(module, run / "checkpoints", 7)
    (run / "checkpoints" / "step-00000009").mkdir()  # empty: an interrupted copy
    export(run, tmp_path / "newest")
    export(run / "checkpoints" / "step-00000003", tmp_path / "older")
    first, second = (auto("gpt2", tmp_path / name) for name in ("newest", "older"))
    assert torch.equal(first.transformer.wte.weight, old + 1)
    assert torch.equal(second.transformer.wte.weight, old)

    with open(newer / "rank-00000.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        export(newer, tmp_path / "damaged")
    export(run, tmp_path / "next")
    assert torch.equal(auto("gpt2", tmp_path / "next").transformer.wte.weight, old)


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path, capsys) -> None:
    with pytest.raises(DataError, match="is no run folder"):
        export(tmp_path, tmp_path / "out")
    run, module, _ = make_run(tmp_path, "gpt2")
    (tmp_path / "there").mkdir()
    with pytest.raises(StorageError, match="exists"):
        export(run, tmp_path / "there")
    text = (run / "model.json").read_text().replace('"n_layer": 1', '"n_layer": 2')
    (run / "model.json").write_text(text)
    assert main([str(run), str(tmp_path / "out")]) == CheckpointError.exit_code
    assert "is not of this model: model.transformer.h.1." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
