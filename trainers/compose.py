"""The command line -> one checked `Config`. Hydra chooses the YAML files and stops here.

    experiment=quickstart optimizer=adamw train.steps=50
    `- a choice of files: Hydra -'        `- a value: checked against its type, set on top

No torch below this line of the import tree: a typing error answers in well under a second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import gcd
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.devices import default_processes
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.folder_shape import dropout_of, shape_of
from trainers.phases import batch_units, with_micro_sizes
from trainers.typed import MISSING, convert, leaves, message
from trainers.validate import problems_of
from trainers.words import split

# Beside this package, in a checkout as in site-packages. Not found through the import system: a
# folder named `configs` in the user's own project would answer to the name.
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = {"experiment": "experiment@_global_"}  # an experiment sets keys of the whole tree
LEAVES = leaves(Config)
_GPUS_PER_NODE = 8  # of a machine that is planned
Kind = TypeVar("Kind")  # a dataclass of settings


def choices() -> dict[str, list[str]]:
    """The groups of the config tree and the names that each can be given."""
    groups = sorted(folder for folder in CONFIGS.iterdir() if any(folder.glob("*.yaml")))
    return {group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in groups}


def compose(
    overrides: Sequence[str],
    world_size: int | None = None,
    *,
    planned: bool = False,
    needs_text: bool = True,
    flags: Collection[str] = (),
) -> Config:
    """The configuration of a run, complete: no 0 in it stands for a number to be found later.

    Args:
        overrides: `key=value` words as typed.
        world_size: number of ranks; None = launch.processes, or as many as suit this machine.
        planned: it will not be run here: no data is needed, and there are launch.nodes machines.
        needs_text: False for who reads none: which text it would be may stay open.
        flags: options of the command, one of which a word with dashes may have meant.

    Raises:
        ConfigError: with every problem that was found, one per line.
    """
    problems: list[str] = []
    config = read_words(Config, "config", overrides, choices(), problems, flags)
    if config is not None:
        world_size = world_size or _world_size(config, planned)
        problems += problems_of(config, world_size, planned=planned, needs_text=needs_text)
    if problems or config is None or world_size is None:
        raise ConfigError(message(problems))
    return _concrete(config, world_size)


def read_words(
    kind: type[Kind],
    file: str,
    words: Sequence[str],
    groups: Mapping[str, list[str]],
    problems: list[str],
    flags: Collection[str] = (),
) -> Kind | None:
    """`configs/<file>.yaml` with the `key=value` words on top, as a `kind`.

    Args:
        groups: which files of which folders can be chosen.
        problems: gets a sentence for everything that is wrong; then the answer may be None.

    Raises:
        ConfigError: what Hydra cannot read.
    """
    names, values = split(words, leaves(kind), groups, problems, flags)
    said = len(problems)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            tree = hydra_compose(file, [f"{FILES.get(k, k)}={v}" for k, v in names.items()])
        config = _typed(kind, tree, {**_tuned(tree, names), **values}, problems)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:  # in their own words
        text = str(error) or str(error.__cause__)
        raise ConfigError(message([*problems, text])) from error
    # A wrong value was left out: that there is none now would be said for nothing.
    given = tuple(f"{word.partition('=')[0].lstrip('+')} has no value" for word in words)
    problems[said:] = [problem for problem in problems[said:] if not problem.startswith(given)]
    return config


def problems_of_words(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """What is wrong with the `key=value` words of a command that changes a run that is there."""
    problems: list[str] = []
    split(words, LEAVES, choices(), problems, flags)
    return problems


def reread(
    saved: Mapping[str, Any], changes: Mapping[str, Any], overrides: Sequence[str]
) -> Config:
    """The configuration that a run wrote down, for one rank: with `changes` of dotted keys, and the
    `key=value` words of `overrides` on top.

    Raises:
        ConfigError: with every problem that was found, one per line.
    """
    problems: list[str] = []
    names, values = split(overrides, LEAVES, choices(), problems)
    problems += [
        f"{group}={name}: only single values can be changed here" for group, name in names.items()
    ]
    try:
        # How it was started says nothing about who reads it here.
        launch = {**OmegaConf.load(CONFIGS / "config.yaml").launch, "name": "local"}
        tree = OmegaConf.create({**saved, "launch": launch})
        config = _typed(Config, tree, {**changes, **values}, problems)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    if config is not None:
        config = replace(config, batch=replace(config.batch, global_size=config.batch.micro_size))
        problems += problems_of(config, 1)
    if problems or config is None:
        raise ConfigError(message(problems))
    return _concrete(config, 1)


def _world_size(config: Config, planned: bool) -> int:
    """Ranks on all machines together, where nobody has started them yet."""
    launch = config.launch
    processes, nodes = launch.gpus_per_node or launch.processes, max(launch.nodes, 1)
    if planned:
        return nodes * (processes or _GPUS_PER_NODE)
    if launch.name == "local":
        return processes or _processes_for(config)
    return nodes * (processes or default_processes())


def _processes_for(config: Config) -> int:
    """One per device; fewer where the batch does not divide and nobody said how to divide it."""
    devices, size = default_processes(), gcd(*batch_units(config))
    if config.batch.micro_size or size < 1:
        return devices
    return next(number for number in range(devices, 0, -1) if size % number == 0)


def _concrete(config: Config, world_size: int) -> Config:
    """Zeros and tildes that stand for something become that something."""
    run, data, model = config.run, config.data, config.model
    paths = {name: getattr(data, name) for name in ("path", "hub", "tokenizer", "cache_dir")}
    sources = tuple(
        replace(source, path=source.path and expanduser(source.path)) for source in data.sources
    )
    return replace(
        with_micro_sizes(config, world_size),
        launch=replace(config.launch, processes=world_size),
        run=replace(run, dir=expanduser(run.dir)),
        model=replace(model, path=model.path and expanduser(model.path)),
        data=replace(
            data,
            sources=sources,
            **{name: path and expanduser(path) for name, path in paths.items()},
        ),
    )


def _tuned(tree: DictConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """What the experiment has for the optimizer that was chosen, by key; it leaves the tree.

    `tuned: {lamb: {optimizer.lr: 4e-3}}` is as good as optimizer.lr=4e-3 with optimizer=lamb, but
    weaker than the command line; a file that was chosen there, as schedule=cosine, stays whole.
    """
    OmegaConf.set_struct(tree, False)
    tuned = OmegaConf.to_container(OmegaConf.create(tree.pop("tuned", {})))
    mine = tuned.get(tree.optimizer.name, {}) if tuned and isinstance(tuned, dict) else {}
    whole = names.keys() - {"optimizer"}
    return {key: value for key, value in mine.items() if key.partition(".")[0] not in whole}


def _typed(
    kind: type[Kind], tree: DictConfig, values: dict[str, Any], problems: list[str]
) -> Kind | None:
    OmegaConf.set_struct(tree, False)
    for key, value in values.items():
        OmegaConf.update(tree, key, value)
    container = OmegaConf.to_container(tree, resolve=True)
    if not _fill_shape(container, problems):
        return None
    config: Kind | None = convert(kind, container, "", problems)
    return config


def _fill_shape(container: Any, problems: list[str]) -> bool:
    """The sizes of a model on disk, where they are not given; False if they are not to be had."""
    model = container.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    if not isinstance(path, str):
        return True
    if path == MISSING:
        problems.append("model.path has no value: give one with model.path=FOLDER")
        return False
    try:
        shape = shape_of(Path(expanduser(path)))
        if "dropout" not in model:
            model["dropout"] = dropout_of(Path(expanduser(path)))
    except ConfigError as error:
        problems.append(str(error))
        return False
    for key, value in shape.items():
        if model.setdefault(key, value) != value:
            problems.append(f"model.{key}={model[key]}, but model.path={path} has {value}")
    return True
