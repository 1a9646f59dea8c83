"""What BERT is asked: the masked words, and whether one text follows the other."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining

from trainers.data.batches import IGNORED_LABEL


@dataclass
class MaskedLMSums:
    """Sums over a batch, 0-dim float32 tensors: losses in nats, and right answers."""

    mlm_loss: Tensor
    mlm_correct: Tensor
    nsp_loss: Tensor
    nsp_correct: Tensor

    def stack(self) -> Tensor:
        """The four as one vector, in the order of the fields, without a gradient."""
        sums = (self.mlm_loss, self.mlm_correct, self.nsp_loss, self.nsp_correct)
        return torch.stack([value.detach().float() for value in sums])


class MaskedLM(nn.Module):
    """A BERT and its objective: `forward` gives sums, not means.

    A micro batch cannot know how many masked words the whole batch has; who calls it divides.
    """

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> MaskedLMSums:
        """Sums over a batch of `MaskedLMBatches`, as tensors on the model's device."""
        hidden = self.model.bert(
            input_ids=batch["input_ids"],
            token_type_ids=batch["token_type_ids"],
            attention_mask=batch["attention_mask"],
        )
        # The vocabulary head at the masked positions only: one in seven.
        positions = batch["masked_positions"]
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        logits = self.model.cls.predictions(hidden.last_hidden_state[rows, positions])
        mlm_loss, mlm_correct = _loss_and_correct(logits.flatten(0, 1), batch["masked_labels"])
        scores = self.model.cls.seq_relationship(hidden.pooler_output)
        labels = batch.get("next_sentence_label")
        if labels is None:
            # Unused heads still take part: ZeRO expects every parameter in every backward.
            return MaskedLMSums(mlm_loss, mlm_correct, scores.sum() * 0.0, mlm_correct * 0.0)
        return MaskedLMSums(mlm_loss, mlm_correct, *_loss_and_correct(scores, labels))


def _loss_and_correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    labels = labels.flatten()
    loss = cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum().float()
