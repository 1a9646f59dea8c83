"""The benchmark of saving runs, and prints what it has measured."""

import json
from pathlib import Path

import pytest

from scripts import bench_checkpoint


def test_a_run_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    words = ["--model", "toy", "--rounds", "2", "--folder", str(tmp_path), "--out", str(out)]
    bench_checkpoint.main(words)
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    stall, waited = (
        record["seconds"][k] for k in (bench_checkpoint.STALL, bench_checkpoint.COMMITTED)
    )
    assert len(stall) == 2 and all(0 < s < w for s, w in zip(stall, waited, strict=True))
    assert record["bytes"] > 1e6
    assert "| background: training waits |" in printed and "the first save" in printed.lower()
    assert len(record["steps"][bench_checkpoint.ALONE]) == 4
    assert list(tmp_path.iterdir()) == [out], "what was saved is removed"
    bench_checkpoint.main(["--table", str(out)])
    assert capsys.readouterr().out == printed
