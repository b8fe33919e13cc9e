"""The two networks of ELECTRA in plain PyTorch on padded (B, S) tensors.

This folder is the reference: tests compare our results with it, and benches our speed. It calls none of our ops and
runs in any floating-point type, and its state-dict keys are Hugging Face's. The model is Clark et al., "ELECTRA" (ICLR
2020), with the details of Google's code, such as LayerNorm after each block and the erf GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import NetworkConfig

Dropout = Callable[[Tensor, float, str], Tensor]  # (x, p, site) -> x, called only in training


def torch_dropout(x: Tensor, p: float, site: str) -> Tensor:
    return F.dropout(x, p)


def _modules(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def _layer(config: NetworkConfig) -> nn.ModuleDict:
    """One layer's parameters under Hugging Face's names."""
    width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
    projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
    attention_output = _modules(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps))
    return _modules(
        attention=nn.ModuleDict({"self": projections, "output": attention_output}),
        intermediate=_modules(dense=nn.Linear(width, inner)),
        output=_modules(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width, eps)),
    )


class ReferenceEncoder(nn.Module):
    """Embeddings, a projection to the hidden size if it differs from theirs, and the layers.

    config: the sizes and dropout probabilities.
    name: the network's name, with which every site of dropout begins.
    dropout: called in training with (x, p, site), in place of torch's dropout. The sites are NAME.embeddings of
        (B, S, E), and in layer i NAME.layer.i.attention of the probabilities (B, H, S, S), and
        NAME.layer.i.attention_output and NAME.layer.i.ffn of (B, S, D).
    """

    embeddings: Any  # nested nn.ModuleDicts: their keys give Hugging Face's names
    encoder: Any

    def __init__(self, config: NetworkConfig, name: str, dropout: Dropout) -> None:
        super().__init__()
        self.config, self.name, self.dropout = config, name, dropout
        width = config.embedding_size
        self.embeddings = _modules(
            word_embeddings=nn.Embedding(config.vocab_size, width),
            position_embeddings=nn.Embedding(config.max_position_embeddings, width),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, width),
            LayerNorm=nn.LayerNorm(width, config.layer_norm_eps),
        )
        if width != config.hidden_size:
            self.embeddings_project = nn.Linear(width, config.hidden_size)
        self.encoder = _modules(layer=nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers)))

    def drop(self, x: Tensor, p: float, site: str) -> Tensor:
        return self.dropout(x, p, f"{self.name}.{site}") if self.training else x

    def forward(self, input_ids: Tensor, keep: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Compute hidden states (B, S, D).

        input_ids: (B, S) int64. A token's position is its column.
        keep: (B, S) bool, False at padding.
        token_type_ids: (B, S) int64, or None for 0 everywhere.
        """
        config, tables = self.config, self.embeddings
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = tables["word_embeddings"](input_ids) + tables["token_type_embeddings"](types)
        x = x + tables["position_embeddings"].weight[: input_ids.shape[1]]
        x = self.drop(tables["LayerNorm"](x), config.hidden_dropout_prob, "embeddings")
        if config.embedding_size != config.hidden_size:
            x = self.embeddings_project(x)
        for i, layer in enumerate(self.encoder["layer"]):
            output, ffn = layer["attention"]["output"], layer["output"]
            y = output["dense"](self.attention(x, keep, layer["attention"]["self"], f"layer.{i}.attention"))
            y = self.drop(y, config.hidden_dropout_prob, f"layer.{i}.attention_output")
            x = output["LayerNorm"](x + y)
            y = ffn["dense"](F.gelu(layer["intermediate"]["dense"](x)))
            x = ffn["LayerNorm"](x + self.drop(y, config.hidden_dropout_prob, f"layer.{i}.ffn"))
        return x

    def attention(self, x: Tensor, keep: Tensor, projections: Any, site: str) -> Tensor:
        """softmax(q k^T / sqrt(head_dim)) v of x (B, S, D) over the keys where keep (B, S) is True; (B, S, D)."""
        heads = self.config.num_attention_heads
        q, k, v = (projections[n](x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) * self.config.head_dim**-0.5
        # The least finite number instead of -inf, which would give NaN in a sequence that is all padding.
        scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
        probabilities = self.drop(scores.softmax(-1), self.config.attention_probs_dropout_prob, site)
        return (probabilities @ v).transpose(1, 2).flatten(2)


class ReferenceGenerator(nn.Module):
    """The masked language model: logits = word_table LayerNorm(gelu(dense(hidden))) + bias, the table tied."""

    def __init__(self, config: NetworkConfig, dropout: Dropout = torch_dropout, name: str = "generator") -> None:
        super().__init__()
        width = config.embedding_size
        self.config = config
        self.electra = ReferenceEncoder(config, name, dropout)
        self.generator_predictions = _modules(
            LayerNorm=nn.LayerNorm(width, config.layer_norm_eps), dense=nn.Linear(config.hidden_size, width)
        )
        self.generator_lm_head = nn.Linear(width, config.vocab_size)
        self.generator_lm_head.weight = self.electra.embeddings["word_embeddings"].weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the rows that enter the word table (B, S, E), and logits (B, S, V), which are 0 at padding.

        rows: (M,) int64, indices into the B * S tokens; if given, only these are computed: (M, E) and (M, V).
        """
        keep = keep_mask(input_ids, attention_mask)
        x = self.electra(input_ids, keep, token_type_ids)
        if rows is not None:
            x = x.flatten(0, 1)[rows]
        x = self.generator_predictions["LayerNorm"](F.gelu(self.generator_predictions["dense"](x)))
        logits = self.generator_lm_head(x)
        return x, logits if rows is not None else logits.masked_fill(~keep[..., None], 0)


class ReferenceDiscriminator(nn.Module):
    """One logit for each token, above 0 if it looks replaced: logit = dense_prediction(gelu(dense(hidden)))."""

    def __init__(self, config: NetworkConfig, dropout: Dropout = torch_dropout, name: str = "discriminator") -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.electra = ReferenceEncoder(config, name, dropout)
        self.discriminator_predictions = _modules(dense=nn.Linear(width, width), dense_prediction=nn.Linear(width, 1))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Compute logits (B, S), which are 0 at padding."""
        head, keep = self.discriminator_predictions, keep_mask(input_ids, attention_mask)
        x = F.gelu(head["dense"](self.electra(input_ids, keep, token_type_ids)))
        return head["dense_prediction"](x).squeeze(-1).masked_fill(~keep, 0)


def keep_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The attention mask as (B, S) bool, True at real tokens; all tokens are real where the mask is None."""
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
