"""The training stack: came-train and its like.  `came` alone needs none of it."""

import sys
from importlib.util import find_spec

# Of the packages of pyproject's `train` those that a command cannot even start without.
_NEEDED = ("hydra", "matplotlib", "numpy", "rich", "safetensors", "tokenizers", "yaml")
_MISSING = [name for name in _NEEDED if find_spec(name) is None]
if _MISSING:
    sys.stderr.write(
        f"error: not installed: {', '.join(_MISSING)}; `came` needs torch alone, but came-train "
        "and its like need more: pip install 'came-pretraining[train]'\n"
    )
    raise SystemExit(2)
