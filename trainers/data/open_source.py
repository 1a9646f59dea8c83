"""From the settings of `data` to the source that they name: files, the hub, or a mix of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from trainers.config import DataConfig, MixSource
from trainers.data.documentation import documentation_source
from trainers.data.documents import Part, Source
from trainers.data.hub import HubDataset, hub_source
from trainers.data.sources import text_source
from trainers.errors import ConfigError


def open_source(data: DataConfig) -> Source:
    """The source that the settings name. Raises ConfigError when they name none."""
    if data.packages:
        return documentation_source(data.packages)
    if data.path:
        return text_source(data.path, data.text_column)
    if data.hub:
        return _hub(data.hub, data)
    if data.sources:
        return _mix(data.sources)
    raise ConfigError(
        f"data={data.name} names no text: need data=pydocs, data=text with data.path, "
        "data=hub with data.hub, or data=mix with data.sources"
    )


def _hub(name: str, given: DataConfig | MixSource, join_records: int = 1) -> Source:
    revision, column = given.hub_revision, given.text_column
    dataset = HubDataset(name, given.hub_config, given.split, revision, column)
    return hub_source(dataset, join_records)


def _mix(given: Sequence[MixSource]) -> Source:
    """All sources, one after the other; a weight is a share of the text."""
    sources = [
        text_source(one.path, one.text_column, one.join_records)
        if one.path
        else _hub(str(one.hub), one, one.join_records)
        for one in given
    ]
    digest = hashlib.sha256(json.dumps([source.digest for source in sources]).encode())
    return Source(
        name=" and ".join(source.name for source in sources),
        digest=digest.hexdigest(),
        parts=partial(_all_parts, sources),
        weights=tuple(one.weight for one in given if one.weight is not None),
    )


def _all_parts(sources: Sequence[Source]) -> list[Part]:
    return [
        replace(part, group=group)
        for group, source in enumerate(sources)
        for part in source.parts()
    ]
