"""What GPT-2 and LLaMA are asked: the next token."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from trainers.objectives.cross_entropy import VocabularyHead
from trainers.objectives.sums import Sums


class CausalLM(nn.Module):
    """A decoder and its objective: task "lm"."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.lm_head = VocabularyHead.of(model.lm_head)
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Sums:
        """Sums over a batch of `CausalBatches`, as tensors on the model's device."""
        positions = batch.get("position_ids")
        mask = None if positions is None else same_document(positions)
        hidden = self.model.base_model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        loss, correct = self.model.lm_head(hidden.flatten(0, 1), batch["labels"].flatten())
        return Sums({"lm": loss}, {"lm": correct})


def same_document(positions: Tensor) -> Tensor:
    """Which places may see which [B, 1, L, L]: earlier ones of their own document.

    A document starts where `positions` [B, L] is 0.
    """
    document = (positions == 0).cumsum(1)
    is_same = document.unsqueeze(2) == document.unsqueeze(1)
    return is_same.tril_().unsqueeze(1)
