"""What BERT is asked: the masked words, and whether one text follows the other."""

import torch
from torch import Tensor, nn
from transformers import BertForPreTraining

from trainers.objectives.cross_entropy import VocabularyHead
from trainers.objectives.sums import Sums, loss_and_correct


class MaskedLM(nn.Module):
    """A BERT and its objective: tasks "mlm", and "nsp" where the batch has pairs."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        predictions = model.cls.predictions
        predictions.decoder = VocabularyHead.of(predictions.decoder)
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Sums:
        """Sums over a batch of `MaskedLMBatches`, as tensors on the model's device."""
        hidden = self.model.bert(
            input_ids=batch["input_ids"],
            token_type_ids=batch["token_type_ids"],
            attention_mask=key_mask(batch.get("attention_mask")),
        )
        # The vocabulary head at the masked positions only: one in seven.
        positions = batch["masked_positions"]
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        head = self.model.cls.predictions
        asked = head.transform(hidden.last_hidden_state[rows, positions])
        loss, correct = head.decoder(asked.flatten(0, 1), batch["masked_labels"].flatten())
        scores = self.model.cls.seq_relationship(hidden.pooler_output)
        labels = batch.get("next_sentence_label")
        if labels is None:
            # Unused heads still take part: ZeRO expects every parameter in every backward.
            return Sums({"mlm": loss + scores.sum() * 0.0}, {"mlm": correct})
        nsp_loss, nsp_correct = loss_and_correct(scores, labels)
        return Sums({"mlm": loss, "nsp": nsp_loss}, {"mlm": correct, "nsp": nsp_correct})


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which tokens may be looked at, [B, 1, 1, L], from [B, L]; None where all may.

    A mask of two dimensions transformers would ask whether it is all ones: the host would wait for
    the device in every forward.
    """
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()
