"""From the settings of `data` to the source that they name: files, the hub, or a mix of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from trainers.config import DataConfig, MixSource
from trainers.data.documentation import documentation_source
from trainers.data.documents import Part, Source, joined
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


def _hub(name: str, given: DataConfig | MixSource) -> Source:
    revision, column = given.hub_revision, given.text_column
    return hub_source(HubDataset(name, given.hub_config, given.split, revision, column))


def _mix(given: Sequence[MixSource]) -> Source:
    """All sources, one after the other; a weight is a share of the text."""
    sources = [
        text_source(one.path, one.text_column) if one.path else _hub(str(one.hub), one)
        for one in given
    ]
    numbers = [one.join_records for one in given]
    digests = [f"{source.digest} {n}" for source, n in zip(sources, numbers, strict=True)]
    digest = hashlib.sha256(json.dumps(digests).encode())
    return Source(
        name=" and ".join(source.name for source in sources),
        digest=digest.hexdigest(),
        parts=partial(_all_parts, sources, numbers),
        weights=tuple(one.weight for one in given if one.weight is not None),
    )


def _all_parts(sources: Sequence[Source], numbers: Sequence[int]) -> list[Part]:
    return [
        replace(
            part, group=group, read=partial(joined, part.read, number) if number > 1 else part.read
        )
        for group, (source, number) in enumerate(zip(sources, numbers, strict=True))
        for part in source.parts()
    ]
