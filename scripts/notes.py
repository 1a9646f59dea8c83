"""What the comments of the configuration say of its keys, in YAML and in the typed classes."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any


def of_fields(kind: Any, prefix: str) -> dict[str, str]:
    """What the comments of a dataclass say of its fields: behind them, or in the line above."""
    lines = inspect.getsource(kind).splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own = lines[node.lineno - 1 : node.end_lineno]
            above = lines[node.lineno - 2].strip()
            comments = [line.partition("  # ")[2] for line in own if "  # " in line]
            comments = comments or [above.lstrip("# ")] * above.startswith("#")
            found[f"{prefix}{node.target.id}"] = " ".join(comments)
    return {key: text for key, text in found.items() if text}


def of_yaml(file: Path, prefix: str = "") -> dict[str, str]:
    """What the comments of a file say of its dotted keys: behind them, or in the lines above.

    The comment at the top of the file belongs to the file.
    """
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in file.read_text().splitlines():
        match = re.match(r"( *)([\w.]+):(?: .*?)??(?:  # (.*))?$", line)
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if match:
            indent = len(match[1])
            path = [(at, key) for at, key in path if at < indent] + [(indent, match[2])]
            text = match[3] or " ".join(above)
            if text:
                found[prefix + ".".join(key for _, key in path)] = text
        above = []
    found.pop(f"{prefix}name", None)
    return found
