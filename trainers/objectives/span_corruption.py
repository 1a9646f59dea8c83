"""What T5 is asked: the spans that were taken out of a text."""

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from trainers.objectives.cross_entropy import VocabularyHead
from trainers.objectives.sums import Sums


class SpanCorruption(nn.Module):
    """A T5 and its objective: task "span"."""

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        super().__init__()
        model.lm_head = VocabularyHead.of(model.lm_head)
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Sums:
        """Sums over a batch of `SpanCorruptionBatches`, as tensors on the model's device."""
        labels = batch["labels"]
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        text = self.model.encoder(input_ids=batch["input_ids"]).last_hidden_state
        hidden = self.model.decoder(
            input_ids=torch.cat([start, labels[:, :-1]], dim=1),
            encoder_hidden_states=text,
            use_cache=False,
        ).last_hidden_state
        if self.model.config.scale_decoder_outputs:  # the head is the embedding, of unit variance
            hidden = hidden * self.model.model_dim**-0.5
        loss, correct = self.model.lm_head(hidden.flatten(0, 1), labels.flatten())
        return Sums({"span": loss}, {"span": correct})
