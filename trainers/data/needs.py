"""What an objective asks of the prepared data: the units of text, special tokens, lengths."""

from dataclasses import dataclass
from typing import Literal

from trainers.config import ObjectiveConfig
from trainers.errors import ConfigError

# The longest run of tokens that a document is stored in. The runs of a document lie end to end, so
# where it is cut is seen by nobody, and the same store serves every sequence length.
PIECE_TOKENS = 2**16


@dataclass(frozen=True)
class Needs:
    """What `prepare` is told of an objective.

    units: "sentences", split by rules and stripped; or "documents", with their blanks and line
    breaks. max_tokens: longer units are cut. special: roles of special tokens (`SpecialIds`).
    fills: tokens of a sequence that one document has to fill; 0 where they lie end to end.
    """

    units: Literal["sentences", "documents"]
    max_tokens: int
    special: tuple[str, ...]
    fills: int = 0


def needs_of(objective: ObjectiveConfig, sequence_length: int | None = None) -> Needs:
    """What the objective needs at a sequence length, its own by default.

    Sentences for masked words are cut to half of what the length leaves beside the special tokens,
    so that two always fit. Raises ConfigError for a length that leaves no room.
    """
    length = sequence_length or objective.sequence_length
    if length < 5:
        raise ConfigError(f"objective.sequence_length={length}: need at least 5")
    match objective.name:
        case "masked_lm":
            fills = 0 if objective.packing else length
            return Needs("sentences", (length - 3) // 2, ("pad", "cls", "sep", "mask"), fills)
        case "causal_lm":
            return Needs("documents", PIECE_TOKENS, ("eos",))
        case "span_corruption":
            return Needs("documents", PIECE_TOKENS, ("pad", "eos", "sentinels"))
    raise ConfigError(f"objective={objective.name}: what data it needs is not known")
