"""The parameters of the models that an optimizer is timed on: names and shapes, in their order.

Written out, so that a machine with torch alone can run the benchmark; a test holds them against
the models of transformers.
"""

from collections.abc import Iterator

Shapes = list[tuple[str, tuple[int, ...]]]


def bert(layers: int, width: int, words: int = 30522, positions: int = 512) -> Iterator[Shapes]:
    """BERT with both heads of pretraining; the decoder's matrix is that of the words."""
    for name, rows in (("word", words), ("position", positions), ("token_type", 2)):
        yield [(f"bert.embeddings.{name}_embeddings.weight", (rows, width))]
    yield _norm("bert.embeddings.LayerNorm", width)
    for layer in range(layers):
        prefix = f"bert.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            yield _linear(f"{prefix}.attention.self.{name}", width, width)
        yield _linear(f"{prefix}.attention.output.dense", width, width)
        yield _norm(f"{prefix}.attention.output.LayerNorm", width)
        yield _linear(f"{prefix}.intermediate.dense", 4 * width, width)
        yield _linear(f"{prefix}.output.dense", width, 4 * width)
        yield _norm(f"{prefix}.output.LayerNorm", width)
    yield _linear("bert.pooler.dense", width, width)
    yield [("cls.predictions.bias", (words,))]
    yield _linear("cls.predictions.transform.dense", width, width)
    yield _norm("cls.predictions.transform.LayerNorm", width)
    yield _linear("cls.seq_relationship", 2, width)


def gpt2(layers: int, width: int, words: int = 50257, positions: int = 1024) -> Iterator[Shapes]:
    """GPT-2, whose weights stand the other way round: inputs by outputs."""
    yield [
        ("transformer.wte.weight", (words, width)),
        ("transformer.wpe.weight", (positions, width)),
    ]
    for layer in range(layers):
        prefix = f"transformer.h.{layer}"
        yield _norm(f"{prefix}.ln_1", width)
        yield _conv1d(f"{prefix}.attn.c_attn", width, 3 * width)
        yield _conv1d(f"{prefix}.attn.c_proj", width, width)
        yield _norm(f"{prefix}.ln_2", width)
        yield _conv1d(f"{prefix}.mlp.c_fc", width, 4 * width)
        yield _conv1d(f"{prefix}.mlp.c_proj", 4 * width, width)
    yield _norm("transformer.ln_f", width)


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def _norm(name: str, width: int) -> Shapes:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _conv1d(name: str, inputs: int, outputs: int) -> Shapes:
    return [(f"{name}.weight", (inputs, outputs)), (f"{name}.bias", (outputs,))]


MODELS = {
    "bert-large": lambda: bert(24, 1024),
    "gpt2": lambda: gpt2(12, 768),
    "toy": lambda: bert(2, 64, words=500, positions=32),
}


def model_shapes(model: str) -> Shapes:
    """All parameters of one of `MODELS`."""
    return [entry for part in MODELS[model]() for entry in part]
