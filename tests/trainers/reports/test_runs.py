"""What a folder is found to be: a run, a run with a flaw, no run, or an error that names it."""

import json
from pathlib import Path

import pytest

from tests.trainers.reports.run_folders import write_run
from trainers.errors import DataError
from trainers.reports.runs import find_runs, read_runs


def test_runs_are_found_once_wherever_they_lie(tmp_path: Path) -> None:
    first, deep = write_run(tmp_path / "a"), write_run(tmp_path / "b" / "deep" / "run")
    (first / "checkpoints" / "step-3").mkdir(parents=True)
    write_run(first / "checkpoints" / "step-3")  # a run holds no other run
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").write_text("no: run")
    (tmp_path / "c").symlink_to(deep)
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(first)
    found, empty = find_runs([tmp_path, first, tmp_path / "configs"])
    assert sorted(found) == [first, deep] and empty == [tmp_path / "configs"]
    assert find_runs([tmp_path / "elsewhere"]) == ([first], [])


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no .*/nothing: name run folders"):
        find_runs([write_run(tmp_path / "a"), tmp_path / "nothing"])


def test_runs_are_named_by_what_of_their_paths_differs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "x" / "came" / "0"), write_run(tmp_path / "x" / "adamw" / "0")]
    assert [run.name for run in read_runs(folders)] == ["came/0", "adamw/0"]
    assert [run.name for run in read_runs(folders[:1])] == ["0"]


def test_flaws_are_told(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "good"),
        write_run(tmp_path / "stopped", stopped=20),
        write_run(tmp_path / "diverged", final=None),
        write_run(tmp_path / "started"),
    ]
    (folders[-1] / "metrics.jsonl").write_text("")
    assert [run.flaw for run in read_runs(folders)] == [
        None,
        "stopped at step 20 of 40",
        "train/loss ended as no number",
        "no metrics yet",
    ]


BROKEN = {
    "config.yaml": ["a: [\n", "", "text", None],
    "metrics.jsonl": ["garbage\n", '{"step": 1, "eval/loss": "<b>"}\n', '{"step": 1, "x": [1]}\n'],
    "ledger.json": ["{", "[]", '{"state_bytes": 1}', '{"params": [{"shape": 3}]}'],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, some in BROKEN.items() for content in some]
)
def test_runs_that_cannot_be_read_are_named_all(
    name: str, content: str | None, tmp_path: Path
) -> None:
    folders = [write_run(tmp_path / run) for run in ("bad", "good", "worse")]
    for folder in (folders[0], folders[2]):
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_runs(folders)
    told = str(caught.value)
    assert f"{folders[0]}: " in told and f"{folders[2]}: " in told and str(folders[1]) not in told


def test_no_secret_leaves_a_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", logging__api_key="abcdefgh12345", data__path="s3://u:pw@h/x")
    start = {"command": "came-train hub.token=hf_abcdefghijklmnopqrstuvwx"}
    (run / "provenance.json").write_text(json.dumps({"starts": [start]}))
    (run / "fidelity.md").write_text("password=hunter2hunter2")
    (read,) = read_runs([run])
    told = repr(read)
    for secret in ("abcdefgh12345", "u:pw", "hf_abcdef", "hunter2"):
        assert secret not in told
