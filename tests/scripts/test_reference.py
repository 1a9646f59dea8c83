"""docs/reference.md says what the code says."""

import pytest

from scripts.notes import of_yaml
from scripts.reference import PAGE, page
from trainers.compose import LEAVES, choices

TEXT = page()


def test_the_page_is_not_out_of_date() -> None:
    assert PAGE.read_text() == TEXT, "python -m scripts.reference writes it anew"


def test_every_key_and_choice_is_there() -> None:
    for key in LEAVES:
        chosen = key == "experiment" or key.endswith(".name")
        assert chosen or f"\n| `{key}` | " in TEXT, key
    for group, names in choices().items():
        assert all(f"\n| `{name}` | " in TEXT for name in names), group


@pytest.mark.parametrize(
    "row",
    [
        "| `train.log_every` | whole number; 1 or more | `10` | steps |",
        "| `zero.stage` | 0, 1, 2, 3 | `1` | 1 reduces gradients once per global batch",
        "| `checkpoint.best` | text or null | `null` | a metric",
        "| `optimizer.lr` | number; above 0 | `configs/optimizer/` has it | at the top of",
        "| `objective.mask_fraction` | number or null; between 0 and 1 | `0.15` (masked_lm) |",
        "| `train.phases[].share` | number | has to be given | of train.steps |",
        "| `launch.slurm.memory` | text or null | `null` | of a machine, as 64G;",
        "| `came-check` | what a run would be, and whether it can be one",
        "| 75 | A signal asked the run to stop",
        "| `bert_large` | 336 M parameters (Devlin et al. 2019)",
        "| `seeds` | whole number; from 1 to 1000 | `3` | 0, 1, 2: of the head",
    ],
)
def test_rows(row: str) -> None:
    assert f"\n{row}" in TEXT


def test_comments_of_yaml(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# of the file\nname: x\n# above\n# it\na: 1\nb:\n  c: '#'  # behind it\n  d: 2\n"
    )
    assert of_yaml(tmp_path / "a.yaml", "s.") == {"s.a": "above it", "s.b.c": "behind it"}
