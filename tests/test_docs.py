"""The pages of docs/: what they link to is there, and their commands are words that are taken.

`tests/docs` runs the commands (make test-docs).
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, commands, two_jobs
from tests.docs.stand_ins import make_files, make_model
from trainers.compose import compose
from trainers.finetuning.settings import compose_finetune
from trainers.flags import FLAGS
from trainers.sweep import read_sweep

PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))
LINKING = [*PAGES, *REPOSITORY.glob("*.md"), *(REPOSITORY / "scripts").rglob("*.md")]
COMMANDS = [(page, command) for page in PAGES for command in commands(page.read_text("utf-8"))]
NOT_YET: set[str] = set()  # pages that are pointed to before they are there
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TOOLS = {"make", "source", "cd", "cp", "pip", "python", "torchrun"}
SERVICES = {"docker", "tensorboard", "wandb"}
PROGRAMS = re.findall(r"^(came-\w+) =", (REPOSITORY / "pyproject.toml").read_text(), re.M)


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def test_there_is_something_to_look_at() -> None:
    assert {"docs/tutorial.md", "docs/howto.md"} <= {name(page) for page, _ in COMMANDS}
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in links(page) if not leads_somewhere(page, link)]


def test_what_is_not_there_yet_is_not_there() -> None:
    """So that the list gets shorter again."""
    assert not [path for path in NOT_YET if (REPOSITORY / path).exists()]


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.M | re.S)
    yield from (link for link in LINK.findall(text) if "://" not in link)


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, section = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if name(target) in NOT_YET:
        return True
    return target.exists() and (not section or section in anchors(target))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{plain}-{found.count(plain)}" if plain in found else plain)
    return set(found)


def test_an_anchor_is_what_github_makes_of_a_heading() -> None:
    page = REPOSITORY / "docs" / "planner.md"
    assert {"table-1-of-the-paper", "what-is-exact-and-what-is-not"} <= anchors(page)
    assert leads_somewhere(page, "planner.md#table-1-of-the-paper")
    assert not leads_somewhere(page, "planner.md#table-2")


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_commands_name_programs_and_scripts_that_there_are(page: Path) -> None:
    for words in commands(page.read_text("utf-8")):
        assert words[0] in {*PROGRAMS, *TOOLS, *SERVICES}, words
        for script in (word for word in words if word.startswith("scripts/")):
            assert (REPOSITORY / script).is_file(), words


# How a program reads its words, without doing what they say.
READ: dict[str, Callable[[list[str]], object]] = {
    "came-train": compose,
    "came-check": lambda words: compose(words, needs_text=False),
    "came-plan": lambda words: compose(words, planned=True),
    "came-prepare": lambda words: compose(words, 1),
    "came-finetune": compose_finetune,
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pages may say `my_texts/`."""
    place = tmp_path_factory.mktemp("reader")
    make_files(place)
    make_model(place / "my_bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.mark.parametrize(
    ("program", "words"),
    dict.fromkeys((c[0], tuple(c[1:])) for _, c in COMMANDS if c[0] in READ),
    ids=lambda words: words if isinstance(words, str) else " ".join(words),
)
def test_the_words_are_taken(program: str, words: tuple[str, ...]) -> None:
    options = {word for word in words if word.startswith("--")}
    assert options <= set(FLAGS[program])
    settings = [word for word in words if word not in options]
    if "--multirun" in options:
        assert len(read_sweep(two_jobs(settings)).jobs) == 2
    elif settings:
        READ[program](settings)
