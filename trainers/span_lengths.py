"""How long the texts, inputs and targets of span corruption are, as whole numbers.

Here and not beside the spans themselves, so that what cannot be is refused before numpy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainers.errors import ConfigError

NUM_SENTINELS = 100  # of a vocabulary that is trained here, as in T5


@dataclass(frozen=True)
class SpanLengths:
    """Tokens of one sample: of its text, in its noise spans, and as the model reads and writes it.

    `inputs` and `targets` hold a sentinel for each span and one eos at the end.
    """

    text: int
    noise: int
    spans: int

    @property
    def inputs(self) -> int:
        return self.text - self.noise + self.spans + 1

    @property
    def targets(self) -> int:
        return self.noise + self.spans + 1

    def fit_into(self, num_sentinels: int) -> None:
        """Raise ConfigError when there are more spans than sentinels to stand for them."""
        if self.spans > num_sentinels:
            raise ConfigError(
                f"objective.sequence_length={self.inputs} has {self.spans} spans, and the "
                f"vocabulary {num_sentinels} sentinels: shorten it, or raise objective.mean_span"
            )


def span_lengths(inputs: int, noise_fraction: float, mean_span: float) -> SpanLengths:
    """The lengths with which the corrupted text fills `inputs` tokens exactly.

    512 tokens, 15 % and spans of 3 make 568 tokens of text and 114 of targets, as published.
    Raises ConfigError where a text of that length has no room for the spans.
    """
    # A token more of text makes one token more of inputs, or none: so no length is jumped over, and
    # the longest text that fits lies between one that does and one that does not.
    fits = max(2, inputs - 2)
    beyond = 2 * fits
    while _lengths(beyond, noise_fraction, mean_span).inputs <= inputs:
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if _lengths(middle, noise_fraction, mean_span).inputs <= inputs:
            fits = middle
        else:
            beyond = middle
    found = _lengths(fits, noise_fraction, mean_span)
    if found.inputs != inputs or found.spans > found.text - found.noise:
        raise ConfigError(
            f"objective.noise_fraction={noise_fraction} and objective.mean_span={mean_span} leave "
            f"no text between the spans of {inputs} tokens: lower the one or raise the other"
        )
    return found


def _lengths(text: int, noise_fraction: float, mean_span: float) -> SpanLengths:
    noise = min(max(round(text * noise_fraction), 1), text - 1)
    return SpanLengths(text, noise, max(round(noise / mean_span), 1))
