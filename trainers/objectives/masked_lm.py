"""What BERT is asked: the masked words, and whether one text follows the other."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertForPreTraining

from trainers.objectives.cross_entropy import VocabularyHead
from trainers.objectives.packed_attention import (
    PACKED,
    lengths,
    offsets,
    own_sample_mask,
    places,
)
from trainers.objectives.sums import Sums, loss_and_correct

Way = Literal["jagged", "in turn", "masked"]  # see trainers/objectives/packed_attention.py


class MaskedLM(nn.Module):
    """A BERT and its objective: tasks "mlm", and "nsp" where the batch has pairs."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        model.set_attn_implementation(PACKED)  # SDPA, where it is not told the samples of a row
        predictions = model.cls.predictions
        predictions.decoder = VocabularyHead.of(predictions.decoder)
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Sums:
        """Sums over a batch of `MaskedLMBatches` or `PackedMLMBatches`, on the model's device."""
        hidden = self._hidden(batch, _way(batch["input_ids"]))
        # The vocabulary head at the masked positions only: one in seven.
        head = self.model.cls.predictions
        asked = head.transform(hidden.last_hidden_state.flatten(0, 1)[masked_places(batch)])
        loss, correct = head.decoder(asked, batch["masked_labels"].flatten())
        scores = self.model.cls.seq_relationship(hidden.pooler_output)
        labels = batch.get("next_sentence_label")
        if labels is None:
            # Unused heads still take part: ZeRO expects every parameter in every backward.
            return Sums({"mlm": loss + scores.sum() * 0.0}, {"mlm": correct})
        nsp_loss, nsp_correct = loss_and_correct(scores, labels)
        return Sums({"mlm": loss, "nsp": nsp_loss}, {"mlm": correct, "nsp": nsp_correct})

    def _hidden(self, batch: dict[str, Tensor], way: Way) -> Any:
        """BERT's output; a packed row is read sample by sample, in that `way`."""
        starts, ids = batch.get("sample_starts"), batch["input_ids"]
        if starts is None:
            mask = key_mask(batch.get("attention_mask"))
            return self.model.bert(ids, mask, batch["token_type_ids"])
        position, sample = places(starts, ids.shape[1])
        own: dict[str, Any]
        if way == "jagged":
            own = {"sample_offsets": offsets(starts, ids.shape[1])}
        elif way == "in turn":
            own = {"sample_lengths": lengths(starts, ids.shape[1])}
        else:
            own = {"attention_mask": own_sample_mask(sample)}
        return self.model.bert(ids, position_ids=position, **own)


def _way(ids: Tensor) -> Way:
    if ids.is_cuda:
        return "jagged"
    return "masked" if torch.compiler.is_compiling() else "in turn"


def masked_places(batch: dict[str, Tensor]) -> Tensor:
    """Where the labels stand among the B x L tokens: given, or from masked_positions [B, P]."""
    if "masked_places" in batch:
        return batch["masked_places"]
    rows = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
    return (rows.unsqueeze(1) * batch["input_ids"].shape[1] + batch["masked_positions"]).flatten()


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which tokens may be looked at, [B, 1, 1, L], from [B, L]; None where all may.

    A mask of two dimensions transformers would ask whether it is all ones: the host would wait for
    the device in every forward.
    """
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()
