"""Row 27: text that is one line, or one document, of 100 MB is prepared in less than 1 GB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.data.corpus import WORDS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

SIZE, LIMIT = 100_000_000, 1_000_000_000  # bytes; of the largest process
PREPARE = """
import resource, sys
from trainers.prepare import main
try:
    sys.exit(main())
finally:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print("most memory", max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024)
"""


@pytest.mark.parametrize("between", [" ", ".\n"], ids=["a line", "a document of many lines"])
@pytest.mark.parametrize("experiment", ["quickstart", "quickstart_gpt2"])
def test_memory_is_bounded(tmp_path: Path, between: str, experiment: str) -> None:
    piece = between.join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))) + between
    file = tmp_path / "text.txt"
    with file.open("w", encoding="utf-8") as out:
        for _ in range(SIZE // len(piece) + 1):
            out.write(piece)
        out.writelines(f"\n\nDocument {i} is short. So is its end.\n" for i in range(300))
    assert file.stat().st_size > SIZE
    words = [f"experiment={experiment}", "data=text", f"data.path={file}", "data.vocab_size=300"]
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, *words, f"data.cache_dir={tmp_path}"],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.split()[-1])
    print(f"{used / 1e6:.0f} MB")
    assert used < LIMIT, done.stdout
