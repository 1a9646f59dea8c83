"""`came-prepare`: the data of a run made ready ahead of it, and told about.

The words are those of `came-train`, so that the same words then find what was prepared.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from trainers.compose import compose
from trainers.failures import ends_with_reader, report
from trainers.flags import FLAGS
from trainers.pretrain import read

HELP = """\
came-prepare key=value ...     reads text, trains or takes a tokenizer, and writes tokens to a store

  came-prepare data=text data.path=my_texts/
  came-prepare data=text data.path=articles.jsonl.zst tokenizer=bert/vocab.txt
  came-prepare experiment=quickstart_gpt2 data=openwebtext tokenizer=bpe data.vocab_size=50257
  came-prepare data=mix 'data.sources=[{path: a/, weight: 3}, {path: b.parquet, weight: 1}]' --json

The words are those of came-train (came-train --help lists them all): the objective decides what is
prepared, and came-train with the same words finds it. tokenizer=FILE_OR_FOLDER is short for
data.tokenizer=..., tokenizer=wordpiece, bpe or unigram for data.tokenizer_model=..., there too.

The same command started again goes on where it was stopped or killed. Several processes work on it
(data.workers), and the result does not depend on how many.

--json prints what was prepared as one line of JSON; --traceback shows where errors arise.
Exit codes: 0 done, 2 configuration, 3 data, 6 storage, 8 memory."""


@ends_with_reader
def main() -> None:
    """Run the words of the command line and end the process with an exit code."""
    words = sys.argv[1:]
    as_json = "--json" in words
    line = read([word for word in words if word != "--json"], os.environ)
    try:
        if line.help:
            print(HELP)
        else:
            _prepare(line.overrides, as_json)
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        code = report(error, None, verbose=line.traceback)
    sys.exit(code)


def _prepare(words: Sequence[str], as_json: bool) -> None:
    # One process: what is prepared does not depend on the number of those that train.
    config = compose(words, 1, flags=FLAGS["came-prepare"])
    from trainers.data.needs import needs_of
    from trainers.data.prepare import prepare
    from trainers.data.statistics import describe
    from trainers.phases import shortest_length

    prepared = prepare(config.data, needs_of(config.objective, shortest_length(config)))
    if as_json:
        found = {"folder": str(prepared.folder), "fingerprint": prepared.fingerprint}
        print(json.dumps(found | asdict(prepared.statistics)))
        return
    for text in describe(prepared.statistics):
        print(text)
    print(f"fingerprint {prepared.fingerprint}")
    print(f"folder {prepared.folder}")


if __name__ == "__main__":
    main()
