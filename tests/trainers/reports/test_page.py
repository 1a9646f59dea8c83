"""The page of several runs: one file that needs nothing beside it and believes no file."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.trainers.reports.run_folders import write_run
from trainers.errors import ConfigError, DataError, StorageError
from trainers.report import main, write

# Markup for a page, and for matplotlib, whose formulas stand between dollars
EVIL = "<script>alert('x')</script>\"onload=\"&$\\frac{$"


class Seen(HTMLParser):
    """Tags, the addresses in them, and the text outside <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [v or "" for k, v in attrs if k in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1] != "style":
            self.text += f"{data}\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        write_run(top / "runs" / f"came-{seed}", seed=seed, final=4.0 + seed)
        write_run(top / "runs" / f"adamw-{seed}", "adamw", seed=seed)
    write_run(top / "runs" / "killed", "lamb", stopped=20)
    (top / "runs" / "came-0" / "fidelity.md").write_text("| batch | 32 | 32,768 | small |\n")
    (top / "runs" / "nothing").mkdir()
    runs = [*sorted((top / "runs").iterdir())]
    assert write(runs, paper="bert_large_32k", out=top / "out") == top / "out" / "index.html"
    return top / "out"


def test_the_page_needs_nothing_beside_it(report: Path) -> None:
    page = (report / "index.html").read_text()
    seen = Seen(page)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert "url(" not in page and "@import" not in page
    pictures = sorted(report.glob("*.png"))
    assert len(seen.addresses) == len(pictures) == 12  # four curves, two bars, by day and night
    inside = {
        b64decode(address.removeprefix("data:image/png;base64,")) for address in seen.addresses
    }
    assert inside == {picture.read_bytes() for picture in pictures}
    for picture in pictures:
        assert imread(picture)[..., :3].std() > 0.02, f"{picture} is blank"


def test_the_page_tells_all(report: Path) -> None:
    text = Seen((report / "index.html").read_text()).text
    for words in (
        *("Report of 5 runs", "1 of them did not come to a good end", "No run is in nothing."),
        *("LAMB: not in means and spreads: killed: stopped at step 20 of 40", "abcdef12"),
        *("CAME, paper, step 20,000", "68.05 %", "came-train optimizer=adamw", "torch 2.13.0"),
        *("| batch | 32 | 32,768 | small |", "4.80 kB", "250 ms", "30 x 20", "0.3 percentage"),
    ):
        assert words in text, words


def cells(report: Path) -> list[list[str]]:
    page = (report / "index.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in rows]


def test_the_numbers_of_the_table(report: Path) -> None:
    rows = cells(report)
    assert ["CAME", "2", "4.5000", "0.7071", "4.0000", "5.0000"] in rows
    assert ["AdamW", "2", "5.0000", "0.0000", "5.0000", "5.0000"] in rows
    assert ["LAMB", "0", "-", "-", "-", "-"] in rows


def test_text_of_files_stays_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "-")
    run = write_run(tmp_path / name, model__name=EVIL, optimizer__name=EVIL, run__seed=EVIL)
    write_run(tmp_path / "other", optimizer__name=EVIL, model__name=EVIL, optimizer__lr=EVIL)
    for file in ("ledger.json", "provenance.json"):
        text = (run / file).read_text()
        for word in ("factored", "came-train", "2.13.0", "CPU", "abcdef12", "2026-01-02T03:04:05"):
            text = text.replace(word, json.dumps(EVIL)[1:-1])
        (run / file).write_text(text)
    (run / "fidelity.md").write_text(EVIL)
    seen = Seen(write([tmp_path], out=tmp_path / "out").read_text())
    assert "script" not in seen.tags and seen.handlers == []
    assert seen.text.count("<script>alert") > 8
    assert name in seen.text


def test_a_paper_that_nothing_can_be_compared_with(tmp_path: Path) -> None:
    write_run(tmp_path / "bert")
    with pytest.raises(ConfigError, match="none of the runs measures"):
        write([tmp_path], paper="gpt2_medium", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="choose one of bert_large_8k, bert_large_32k, gpt2"):
        write([tmp_path], paper="bert")


def test_runs_without_a_number_are_listed_all_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (write_run(tmp_path / name) / "metrics.jsonl").unlink()
    text = Seen(write([tmp_path], out=tmp_path / "out").read_text()).text
    assert "CAME: not in means and spreads: a: no metrics yet; b: no metrics yet" in text
    assert "Held-out loss" not in text


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (write_run(tmp_path / "a") / "metrics.jsonl").unlink()  # nothing to draw
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out cannot be written"):
        write([tmp_path], out=tmp_path / "out")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (write_run(tmp_path / "runs" / name) / "metrics.jsonl").unlink()  # nothing to draw
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report" / "index.html")
    # Its own page is no run, also when a pattern names it.
    assert main(["runs", "report"]) == 0
    assert main(["report"]) == DataError.exit_code
    assert main(["runs", "--paper", "x"]) == ConfigError.exit_code
    assert capsys.readouterr().err.count("error: ") == 2
    write_run(tmp_path / "runs" / "a")
    assert main(["runs/a"]) == 0
    assert capsys.readouterr().out.strip().endswith("runs/a/report/summary.md")
