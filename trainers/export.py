"""A trained model for everybody else: `came-export RUN OUT` writes Hugging Face's format.

OUT gets config.json, model.safetensors and the files of the tokenizer: what `from_pretrained` and
the pipelines of transformers read; and README.md, the card of the model. What is tied stays tied.
"""

import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from trainers.config import Config
from trainers.data.tokenizer import special_ids
from trainers.errors import RunError, StorageError
from trainers.failures import ends_with_reader
from trainers.finished import (
    EXPORTED_SETTINGS,
    Place,
    read_global_size,
    read_module,
    read_phases,
    read_saved,
    read_settings,
    read_tokenizer,
)
from trainers.flags import Parser
from trainers.model_card import model_card
from trainers.redact import bare_name, bare_source
from trainers.run.step_folders import step_of

CARD = "README.md"


def export(source: Path, target: Path) -> None:
    """Write the model of a run, of one of its checkpoints, or of an exported folder to `target`.

    Raises StorageError when `target` exists or cannot be written, and what reading raises.
    """
    if target.exists():
        raise StorageError(f"{target} exists: name a folder that does not")
    place = Place.of(source)
    config, tokenizer = read_settings(place, {}, ()), read_tokenizer(place)
    model = read_module(place, config).model
    staging = target.with_name(f"{target.name}.tmp-{secrets.token_hex(6)}")
    try:
        disable_progress_bar()
        model.save_pretrained(staging)
        for_transformers(tokenizer, config).save_pretrained(staging)
        (staging / EXPORTED_SETTINGS).write_text(_settings(place), encoding="utf-8")
        _write_card(place, config, staging / CARD)
        os.rename(staging, target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _settings(place: Place) -> str:
    """The run's settings without what tells of its machines: a model is published."""
    saved = read_saved(place)
    saved.pop("launch", None)
    saved["data"]["cache_dir"] = "~/.cache/came"
    for section in (saved["run"], saved["model"], saved["data"], *saved["data"]["sources"]):
        bare = dict.fromkeys(("dir", "path", "tokenizer"), bare_name) | {"hub": bare_source}
        section |= {key: make(section[key]) for key, make in bare.items() if section.get(key)}
    return str(yaml.safe_dump(saved, sort_keys=False))


def _write_card(place: Place, config: Config, file: Path) -> None:
    if place.commit is None:  # exported before: what the run folder told stands in its card
        if (place.folder / CARD).is_file():
            shutil.copyfile(place.folder / CARD, file)
        return
    step = step_of(place.commit)
    assert step is not None, place.commit
    trained = replace(config, batch=replace(config.batch, global_size=read_global_size(place)))
    card = model_card(trained, place.folder, step, read_phases(place))
    file.write_text(card, encoding="utf-8")


def for_transformers(tokenizer: Tokenizer, config: Config) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens by role, which it puts around a text as in training."""
    special = special_ids(tokenizer)
    roles = ("pad", "unk", "cls", "sep", "mask", "eos", "bos")
    tokens = {
        f"{role}_token": tokenizer.id_to_token(getattr(special, role))
        for role in roles
        if getattr(special, role) is not None
    }
    names = {id_: tokenizer.id_to_token(id_) for id_ in special.sorted()}
    around = {
        "masked_lm": ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"),
        "span_corruption": ("$A {eos}", "$A {eos} $B {eos}"),
    }.get(config.objective.name)
    if around:
        by_role = {role: names.get(getattr(special, role)) for role in roles}
        single, pair = (template.format(**by_role) for template in around)
        used = [(token, id_) for id_, token in names.items() if token in single]
        tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=used)
    elif not isinstance(tokenizer.post_processor, ByteLevel):  # which puts nothing around a text
        tokenizer.post_processor = None
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=config.model.max_positions or config.objective.sequence_length,
        model_input_names=inputs + ["token_type_ids"] * (config.model.family == "bert"),
        additional_special_tokens=[names[id_] for id_ in special.sentinels],
        **tokens,
    )


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-export`."""
    parser = Parser("came-export", description=__doc__)
    parser.add_argument("source", metavar="RUN", type=Path, help="a run folder or a checkpoint")
    parser.add_argument("target", metavar="OUT", type=Path, help="a folder that does not exist yet")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers looks for DeepSpeed, and it tells
    try:
        words = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        export(words.source.resolve(), words.target.resolve())
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(words.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
