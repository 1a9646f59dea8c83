"""What W&B has written: .wandb files are LevelDB logs of protobuf records, which it alone reads.

7 bytes of header, then blocks of 32 KiB (the header counts as part of the first), each of
chunks: checksum (4), length (2), type (1: whole, 2: first, 3: middle, 4: last), bytes
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32 * 1024


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), _HEADER, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:  # too short for another chunk: padding
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if not kind:
            return
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def written(path: Path) -> dict[str, Any]:
    """Of a run: `config`, `rewound` to which step, `rows`, `summary`, `files`, `artifacts`, and
    how many `samples` of the machine."""
    found: dict[str, Any] = {"config": {}, "rows": [], "summary": {}, "files": set(), "samples": 0}
    found |= {"rewound": None, "artifacts": []}
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found["config"] |= _items(record.run.config.update)
                if record.run.HasField("branch_point"):
                    found["rewound"] = record.run.branch_point.value
            case "history":
                found["rows"].append(_items(record.history.item))
            case "summary":
                found["summary"] |= _items(record.summary.update)
            case "files":
                found["files"] |= {file.path for file in record.files.files}
            case "stats":
                found["samples"] += 1
            case "artifact":
                found["artifacts"].append(record.artifact)
            case "request" if record.request.HasField("log_artifact"):
                found["artifacts"].append(record.request.log_artifact.artifact)
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
