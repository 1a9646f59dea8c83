"""From the words of a command to a typed configuration, or to all that is wrong with them."""

import dataclasses
import math
import shutil

import pytest
import yaml
from omegaconf import OmegaConf

from trainers.compose import CONFIGS, LEAVES, choices, compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.limits import LIMITS
from trainers.typed import convert
from trainers.validate import problems_of

EXPERIMENTS = choices()["experiment"]
NEEDED = {name: ["data.path=text"] for name in EXPERIMENTS if name.startswith("bert_")}  # its text
FITTING = {  # a recipe whose other parts fit a model or an objective
    "gpt2": ["experiment=quickstart_gpt2"],
    "gpt3": ["experiment=quickstart_gpt2"],
    "llama": ["experiment=quickstart_llama"],
    "causal": ["experiment=quickstart_gpt2"],
    "t5": ["experiment=quickstart_t5"],
    "span": ["experiment=quickstart_t5"],
    "text": ["data.path=text"],
    "hub": ["data.hub=name"],
    "mix": ["data.sources=[{path: a, weight: 2}, {hub: b, weight: 1}]"],
    "slurm": ["launch.processes=2"],
    "kubernetes": [
        *("launch.gpus_per_node=2", "launch.kubernetes.image=i", "launch.kubernetes.claim=c")
    ],
}


def problems(*words: str, world_size: int = 2) -> list[str]:
    """The lines of the message that `words` are refused with."""
    with pytest.raises(ConfigError) as caught:
        compose(words, world_size)
    first, *rest = str(caught.value).split("\n  - ")
    if not rest:
        return [first]
    assert first == f"{len(rest)} problems in the configuration"
    return rest


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_a_complete_recipe(experiment):
    config = compose([f"experiment={experiment}", *NEEDED.get(experiment, [])], 2)
    assert config.experiment == experiment
    assert config.run.dir == f"runs/{experiment}"
    assert isinstance(hash(config.model), int)  # frozen, and of plain values


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_begins_with_the_command_that_runs_it(experiment):
    first = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()[0]
    program, chosen, *words = first.removeprefix("# ").split()
    assert (program, chosen) == ("came-train", f"experiment={experiment}")
    compose([chosen, *words], 2)


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in choices().items() for name in names if name != "folder"],
)
def test_every_file_of_the_tree_can_be_chosen(group, name):
    others = FITTING.get(name.partition("_")[0], [])
    needed = NEEDED.get(name, []) if group == "experiment" else others
    config = compose([f"{group}={name}", *needed], 2)
    chosen = getattr(config, group)
    assert (chosen if group == "experiment" else chosen.name) == name


def test_every_key_of_the_files_has_a_field_and_a_reader():
    for file in CONFIGS.rglob("*.yaml"):
        if file.name == "finetune.yaml":  # another command's, see tests/trainers/finetuning
            continue
        section = "" if file.parent.name in (CONFIGS.name, "experiment") else file.parent.name
        tree = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "defaults"}
        flat = {section: tree} if section else tree
        for values in (flat.pop("tuned", None) or {}).values():
            flat |= values
        assert set(dotted(flat)) <= LEAVES.keys(), file


def dotted(tree, prefix=""):
    for name, value in tree.items():
        key = f"{prefix}{name}"
        whole = not isinstance(value, dict) or key in LEAVES
        yield from [key] if whole else dotted(value, f"{key}.")


def test_what_a_run_bears_if_nobody_says_otherwise():
    """The defaults that docs/reliability.md names."""
    config = compose([], 2)
    assert (config.train.max_skipped_steps, config.checkpoint.max_failed_saves) == (10, 3)
    assert (config.runtime.grace_seconds, config.data.on_bad_text) == (25, "strict")


def test_values_arrive_with_their_types():
    config = compose(
        [
            "train.steps=1e3",
            "optimizer.lr=1",
            "optimizer.betas=[0.5,0.9,0.99]",
            "data.packages=[numpy]",
            "data.lowercase=false",
            "zero.stage=3",
            "batch.global_size=64",
        ],
        2,
    )
    assert (config.train.steps, type(config.train.steps)) == (1000, int)
    assert (config.optimizer.lr, type(config.optimizer.lr)) == (1.0, float)
    assert config.optimizer.betas == (0.5, 0.9, 0.99)
    assert config.data.packages == ("numpy",)
    assert config.data.lowercase is False
    assert config.zero.stage == 3
    assert config.batch.global_size == 64


@pytest.mark.parametrize("path", ["runs/a, b (1)=[2]", "007", "true", "runs/'x"])
def test_a_path_is_taken_as_it_was_typed(path):
    assert compose([f"run.dir={path}"], 2).run.dir == path


def test_quotes_around_text_and_tildes_are_resolved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = compose(["run.dir='~/runs'", "data.tokenizer=~/vocab.txt"], 2)
    assert config.run.dir == "/home/somebody/runs"
    assert config.data.tokenizer == "/home/somebody/vocab.txt"
    assert compose(["data.tokenizer=null"], 2).data.tokenizer is None


def test_the_cache_lies_where_the_machine_keeps_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert compose([], 2).data.cache_dir == "/scratch/cache/came"


def test_a_choice_on_the_command_line_is_stronger_than_the_experiment():
    config = compose(["optimizer=adamw", "experiment=bert_large_32k", "data=pydocs"], 2)
    assert config.optimizer.name == "adamw"
    assert config.model.name == "bert_large"


def test_the_micro_batch_fits_itself_to_the_processes():
    assert compose(["batch.global_size=64"], 2).batch.micro_size == 32
    assert compose(["batch.global_size=64"], 4).batch.micro_size == 16
    assert compose(["batch.global_size=64", "batch.micro_size=8"], 4).batch.micro_size == 8


def test_the_number_of_processes_comes_from_the_launcher_then_the_file_then_the_machine(
    monkeypatch,
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert compose([]).launch.processes == 2
    assert compose(["launch.processes=4"]).launch.processes == 4
    assert compose(["launch.processes=4"], 1).launch.processes == 1


def test_an_unknown_key_is_answered_with_the_nearest_one():
    assert problems("trian.steps=3") == ["unknown key 'trian.steps'; did you mean 'train.steps'?"]
    assert problems("lr=1") == ["unknown key 'lr'; did you mean 'optimizer.lr'?"]
    assert problems("+optimiser=came") == ["unknown key 'optimiser'; did you mean 'optimizer'?"]
    (answer,) = problems("model.trust_remote_code=true")
    assert answer.startswith("unknown key 'model.trust_remote_code'; the keys of model are model.")
    (answer,) = problems("xyz=1")
    assert answer.startswith("unknown key 'xyz'; there is experiment, run, model, objective, data")


def test_all_problems_are_told_at_once():
    found = problems(
        "trian.steps=3",
        "optimizer.lr=abc",
        "train.steps=-1",
        "optimizer=adan",
        "zero.stage=4",
        "data=text",
        "batch.global_size=5",
        "deepspeed.gradient_cliping=1",
    )
    for fragment in (
        "'trian.steps'; did you mean 'train.steps'",
        "optimizer.lr must be a number, not 'abc'",
        "train.steps must be 1 or more, not -1",
        "no optimizer is named 'adan'; did you mean",
        "zero.stage must be one of 0, 1, 2, 3, not 4",
        "data=text needs data.path=",
        "batch.global_size=5 is not divisible by 2 processes; the nearest valid sizes are 4 and 6",
        "'deepspeed.gradient_cliping', DeepSpeed has no such setting; did you mean "
        "'deepspeed.gradient_clipping'?",
    ):
        assert [fragment in problem for problem in found].count(True) == 1, (fragment, found)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("train.steps=2.5", "train.steps must be a whole number, not 2.5"),
        ("train.steps=true", "train.steps must be a whole number, not True"),
        ("train.steps=null", "train.steps must be a whole number, not None"),
        ("train.steps=???", "train.steps has no value: give one with train.steps=..."),
        ("train.steps=", "train.steps must be a whole number, not ''"),
        ("train.steps=1,2", "train.steps takes one value, not '1,2'; a list is written [1,2]"),
        ("train.steps=[1", "cannot read the value of 'train.steps=[1': put it in quotes"),
        ("train.steps", "cannot read 'train.steps': write NAME=VALUE"),
        ("~train.steps", "cannot read '~train.steps': write NAME=VALUE"),
        ("--steps=3", "unknown key '--steps'; did you mean 'train.steps'?"),
        ("optimizer.lr=-1", "optimizer.lr must be above 0, not -1.0"),
        ("optimizer.lr=nan", "optimizer.lr must be a number, not nan"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: came takes 3 values"),
        ("optimizer.betas=0.9", "optimizer.betas must be a list like [a,b], not 0.9"),
        ("optimizer.betas=[a,1,1]", "optimizer.betas[0] must be a number, not 'a'"),
        ("optimizer.eps=[-1,0]", "optimizer.eps=[-1.0, 0.0]: each must be 0 or more"),
        ("schedule.warmup_fraction=2", "schedule.warmup_fraction must be from 0 to 1, not 2.0"),
        ("objective.mask_fraction=2", "objective.mask_fraction must be between 0 and 1, not 2.0"),
        ("model.dropout=1", "model.dropout must be at least 0 and below 1, not 1.0"),
        ("model.heads=3", "model.hidden=128 is not divisible by model.heads=3"),
        ("runtime.dtype=float16", "runtime.dtype must be one of float32, bfloat16, not 'float16'"),
        ("data.lowercase=1", "data.lowercase must be true or false, not 1"),
        ("checkpoint.keep=1", "checkpoint.keep must be 2 or more, not 1"),
        ("run.dir=", "run.dir= names no folder"),
        ("data.cache_dir=null", "data.cache_dir=null names no folder"),
        ("run.dir=s3://here/x", "run.dir=s3://here/x names no folder"),
        ("run.dir=${oc.env:HOME}", "run.dir: '${...}' is not read on the command line"),
        ("train.steps=${nope}", "train.steps: '${...}' is not read on the command line"),
        ("_target_=os.system", "unknown key '_target_'"),
        ("model._target_=os.system", "unknown key 'model._target_'"),
        ("model.trust_remote_code=true", "unknown key 'model.trust_remote_code'"),
        ("train=3", "'train' is a section; its keys are train.steps, train.log_every"),
        ("optimizer={lr: 1}", "no optimizer is named '{lr: 1}'; choose one of adafactor, adamw"),
        ("data.path=x", "data.path=x is read by data=text only, and data=pydocs was chosen"),
        ("data.packages=[]", "data.packages is empty"),
        ("launch.processes=-1", "launch.processes must be 0 or more, not -1"),
        ("zero.round_robin_gradients=true zero.stage=3", "needs zero.stage 1 or 2, not 3"),
        ("zero.offload_optimizer=true zero.stage=0", "needs zero.stage 1, 2 or 3, not 0"),
        ("deepspeed=3", "deepspeed must be a mapping like {a: 1}, not 3"),
        ("deepspeed.zero_optimization=true", "deepspeed.zero_optimization must be a mapping"),
        ("deepspeed.bf16.enabled=true", "deepspeed.bf16 is written by this program: set runtime."),
        ("deepspeed.zero_optimization.stage=3", "set zero.stage instead"),
        ("deepspeed.zero_optimization.sub_group_sze=3", "zero_optimization.sub_group_size'?"),
        (
            "objective.sequence_length=1024",
            "objective.sequence_length=1024 is longer than the model's positions: "
            "shorten it, or set model.max_positions (now 512)",
        ),
    ],
)
def test_what_is_refused_and_in_which_words(word, answer):
    found = problems(*(word.split() if " zero." in word else [word]))
    assert len(found) == 1
    assert answer in found[0]


def test_what_each_source_of_a_mix_has_for_itself():
    """It was taken and not read, and then the error about the column named the same key again."""
    words = ["data.text_column=body", "data.split=test"]
    assert problems("data=mix", "data.sources=[{path: a, split: x}]", *words) == [
        f"{word} is not read, each source of data=mix has its own: data.sources=[{{{key}: ...}}]"
        for word, key in zip(words, ("text_column", "split"), strict=True)
    ]


@pytest.mark.parametrize(
    ("size", "micro", "world_size", "near"),
    [
        (5, 1, 2, "4 and 6"),
        (3, 4, 2, "8 and 16"),
        (100, 8, 3, "96 and 120"),
        (15, 0, 2, "14 and 16"),
    ],
)
def test_a_batch_that_cannot_be_dealt_out(size, micro, world_size, near):
    words = [f"batch.global_size={size}", f"batch.micro_size={micro}"]
    (problem,) = problems(*words, world_size=world_size)
    assert problem.startswith(f"batch.global_size={size} is not divisible by ")
    assert problem.endswith(f"the nearest valid sizes are {near}")
    for valid in near.split(" and "):
        compose([f"batch.global_size={valid}", words[1]], world_size)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("  stpes: 3", "unknown key 'train.stpes'; did you mean 'train.steps'?"),
        ("  steps: many", "train.steps must be a whole number, not 'many'"),
        ("  steps: ${nope}", "nope"),
        ("  steps: [", "quickstart.yaml"),
    ],
)
def test_mistakes_in_a_file_are_told_in_words_too(tmp_path, monkeypatch, line, answer):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    file = tmp_path / "configs" / "experiment" / "quickstart.yaml"
    file.write_text(f"experiment: quickstart\nbatch: {{global_size: 8}}\ntrain:\n{line}\n")
    monkeypatch.setattr("trainers.compose.CONFIGS", tmp_path / "configs")
    assert answer in " ".join(problems())


def test_deepspeed_settings_travel_as_they_are():
    words = ["deepspeed.zero_optimization.reduce_bucket_size=5e7", "deepspeed.log_level=info"]
    expected = {"zero_optimization": {"reduce_bucket_size": 5e7}, "log_level": "info"}
    assert compose(words, 2).deepspeed == expected


def test_a_config_survives_the_way_through_a_file():
    """What a run writes down is what it was started with."""
    config = compose(["deepspeed.log_level=info"], 2)
    found: list[str] = []
    text = yaml.safe_dump(OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(config))))
    assert convert(Config, yaml.safe_load(text), "", found) == config
    assert found == []


def test_every_number_has_a_limit():
    kinds = (int, float, int | None, float | None)
    numbers = {key for key, kind in LEAVES.items() if kind in kinds}
    assert numbers - LIMITS.keys() == {"model.dropout"}  # half open: checked by itself


@pytest.mark.parametrize("key", LIMITS)
def test_a_number_beyond_its_limit_is_refused(key):
    low = LIMITS[key][0]
    *sections, name = key.split(".")
    parts = [compose([], 2)]
    for section in sections:
        parts.append(getattr(parts[-1], section))
    changed = dataclasses.replace(parts.pop(), **{name: low - 1})
    for part, section in zip(reversed(parts), reversed(sections), strict=True):
        changed = dataclasses.replace(part, **{section: changed})
    found = problems_of(changed, 2)
    assert any(problem.startswith(f"{key} must be ") for problem in found)
    assert math.isfinite(low)


@pytest.mark.parametrize(
    ("gpus", "batch", "processes"), [(8, 16, 8), (6, 16, 4), (7, 16, 4), (3, 9, 3)]
)
def test_processes_are_as_many_as_divide_the_batch(monkeypatch, gpus, batch, processes):
    monkeypatch.setattr("trainers.compose.default_processes", lambda: gpus)
    assert compose([f"batch.global_size={batch}"]).launch.processes == processes
    with pytest.raises(ConfigError, match="not divisible"):
        compose(["batch.global_size=25", "batch.micro_size=2"])


def test_half_precision_needs_a_sharded_optimizer():
    with pytest.raises(ConfigError, match="runtime.dtype=bfloat16 needs zero.stage"):
        compose(["zero.stage=0", "runtime.dtype=bfloat16"])


def test_an_option_that_would_do_nothing_is_refused():
    with pytest.raises(ConfigError, match="adamw clips no update"):
        compose(["optimizer=adamw", "optimizer.clip_threshold=2.0"])


def test_telemetry_is_of_came():
    with pytest.raises(ConfigError, match="logging.telemetry needs optimizer=came, not adamw"):
        compose(["optimizer=adamw", "logging.telemetry=true"])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["checkpoint.best=train/loss"],
            "checkpoint.best=train/loss is no metric of an evaluation",
        ),
        (["checkpoint.best=eval/loss", "eval.every=0"], "checkpoint.best needs eval.every"),
        (["checkpoint.max_failed_saves=0"], "checkpoint.max_failed_saves must be 1 or more, not 0"),
    ],
)
def test_what_checkpoints_cannot_be(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(words)
