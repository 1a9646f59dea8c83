"""Text that stands in a table of markdown."""

from trainers.redact import redact_text


def cell(text: str) -> str:
    """`text` as one cell of a row, without secrets: a | or a new line would end it."""
    return redact_text(text).replace("|", "\\|").replace("\n", " ")
