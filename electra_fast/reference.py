"""A plain ELECTRA in PyTorch on padded (B, S) tensors: the oracle of the tests, the baseline of the benches.

It calls no op of ours, runs in any floating-point type, and its state-dict keys are Hugging Face's. The model is
Clark et al., "ELECTRA" (ICLR 2020), in the details as Google's code has it: post-LN, erf GELU, losses that are means
over the slots and tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import ElectraConfig, NetworkConfig

Dropout = Callable[[Tensor, float, str], Tensor]  # (x, p, site) -> x, called in training alone
UNUSED = -100  # the label of a slot that predicts nothing


def _torch_dropout(x: Tensor, p: float, site: str) -> Tensor:
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
    """Embeddings, their projection where the widths differ, and the layers.

    Sites of dropout, after the network's name: `embeddings` (B, S, E), and in layer i `layer.i.attention`
    (probabilities (B, H, S, S)), `layer.i.attention_output` and `layer.i.ffn` (B, S, D).
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
        """input_ids, keep (bool), token_type_ids (B, S) -> hidden (B, S, D). A token's position is its column."""
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
        """softmax(q k^T / sqrt(head dim)) v over the keys that are no padding: (B, S, D) -> (B, S, D)."""
        heads = self.config.num_attention_heads
        q, k, v = (projections[n](x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) * self.config.head_dim**-0.5
        # The least finite number, not -inf: a sequence that is all padding must not give NaN.
        scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
        probabilities = self.drop(scores.softmax(-1), self.config.attention_probs_dropout_prob, site)
        return (probabilities @ v).transpose(1, 2).flatten(2)


class ReferenceGenerator(nn.Module):
    """The masked language model: hidden -> dense, GELU, LayerNorm -> the word table, tied, plus a bias."""

    def __init__(self, config: NetworkConfig, dropout: Dropout = _torch_dropout, name: str = "generator") -> None:
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
        """(B, S) -> what enters the word table (B, S, E) and logits (B, S, V), 0 at padding.

        rows (M,), indices into B * S: of these alone, (M, E) and (M, V).
        """
        keep = _keep(input_ids, attention_mask)
        x = self.electra(input_ids, keep, token_type_ids)
        if rows is not None:
            x = x.flatten(0, 1)[rows]
        x = self.generator_predictions["LayerNorm"](F.gelu(self.generator_predictions["dense"](x)))
        logits = self.generator_lm_head(x)
        return x, logits if rows is not None else logits.masked_fill(~keep[..., None], 0)


class ReferenceDiscriminator(nn.Module):
    """Was this token replaced? hidden -> dense, GELU -> one logit."""

    def __init__(self, config: NetworkConfig, dropout: Dropout = _torch_dropout, name: str = "discriminator") -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.electra = ReferenceEncoder(config, name, dropout)
        self.discriminator_predictions = _modules(dense=nn.Linear(width, width), dense_prediction=nn.Linear(width, 1))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(B, S) -> logits (B, S), 0 at padding."""
        head, keep = self.discriminator_predictions, _keep(input_ids, attention_mask)
        x = F.gelu(head["dense"](self.electra(input_ids, keep, token_type_ids)))
        return head["dense_prediction"](x).squeeze(-1).masked_fill(~keep, 0)


def _keep(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


def _wide(x: Tensor) -> Tensor:
    """At least float32: a half type is too coarse for sums of losses and for the noise of a sample."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class ReferenceOutput(NamedTuple):
    """B sequences of S columns, M slots."""

    loss: Tensor  # gen_weight * generator_loss + disc_weight * discriminator_loss
    generator_loss: Tensor
    discriminator_loss: Tensor
    sampled_ids: Tensor  # (M,) int64
    corrupted_ids: Tensor  # (B, S) int64: the discriminator's input
    is_replaced: Tensor  # (B, S) bool: its labels; a sample equal to the original is an original
    discriminator_logits: Tensor  # (B, S), 0 at padding


class ReferenceElectra(nn.Module):
    """Generator and discriminator on one set of embeddings (words, positions, types and their LayerNorm)."""

    def __init__(self, config: ElectraConfig, dropout: Dropout = _torch_dropout) -> None:
        super().__init__()
        self.config = config
        self.generator = ReferenceGenerator(config.generator, dropout)
        self.discriminator = ReferenceDiscriminator(config.discriminator, dropout)
        self.discriminator.electra.embeddings = self.generator.electra.embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        masked_ids: Tensor,
        masked_positions: Tensor,
        labels: Tensor,
        sampled_ids: Tensor | None = None,
        temperature: float | None = None,
    ) -> ReferenceOutput:
        """Both losses of one batch.

        input_ids, attention_mask, token_type_ids (B, S) are the text; masked_ids (B, S) is what the generator sees;
        masked_positions (M,) index B * S; labels (M,) are the original ids there, -100 in unused slots. sampled_ids
        (M,) are drawn from the generator unless given; temperature None is the config's, 0 takes the likeliest.

            generator_loss     = sum over used slots of -log p(label) / (used slots + 1e-6)
            discriminator_loss = sum over tokens of BCE(logit, is_replaced) / (tokens + 1e-6), padding left out

        No gradient passes through the samples. Slots at one position (drawn with replacement) leave there the mean of
        their samples' ids, rounded down, as in Google's code.
        """
        config, keep, used = self.config, _keep(input_ids, attention_mask), labels != UNUSED
        _, logits = self.generator(masked_ids, attention_mask, token_type_ids, masked_positions)
        nll = F.cross_entropy(_wide(logits), labels, ignore_index=UNUSED, reduction="sum")
        generator_loss = nll / (used.sum().to(nll.dtype) + 1e-6)

        if sampled_ids is None:
            temperature = config.temperature if temperature is None else temperature
            sampled_ids = self.sample(logits.detach(), labels, temperature)
        flat = input_ids.flatten()
        count = torch.zeros_like(flat).index_add(0, masked_positions, used.long())
        total = torch.zeros_like(flat).index_add(0, masked_positions, sampled_ids * used)
        mean = total.div(count.clamp(min=1), rounding_mode="floor")
        corrupted_ids = torch.where(count > 0, mean, flat).view_as(input_ids)
        is_replaced = corrupted_ids != input_ids

        scores = _wide(self.discriminator(corrupted_ids, attention_mask, token_type_ids))
        bce = F.binary_cross_entropy_with_logits(
            scores, is_replaced.to(scores.dtype), keep.to(scores.dtype), reduction="sum"
        )
        discriminator_loss = bce / (keep.sum().to(bce.dtype) + 1e-6)
        loss = config.gen_weight * generator_loss + config.disc_weight * discriminator_loss
        return ReferenceOutput(
            loss, generator_loss, discriminator_loss, sampled_ids, corrupted_ids, is_replaced, scores
        )

    def sample(self, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """logits (M, V) -> ids (M,) drawn from softmax(logits / temperature) by Gumbel noise."""
        logits = _wide(logits) / (temperature or 1.0)
        if self.config.disallow_correct:
            logits = logits - 1000.0 * F.one_hot(labels.clamp(min=0), logits.shape[1])
        if temperature == 0:
            return logits.argmax(-1)
        return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


class ReferenceMasked(NamedTuple):
    masked_ids: Tensor  # (B, S) int64
    masked_positions: Tensor  # (M,) int64, into B * S
    labels: Tensor  # (M,) int64


def mask_tokens(
    input_ids: Tensor, attention_mask: Tensor, config: ElectraConfig, generator: torch.Generator | None = None
) -> ReferenceMasked:
    """Choose and hide tokens: in a sequence of n, round-half-even(mask_prob n), at least 1, without replacement.

    [CLS], [SEP], [MASK] and [PAD] are never chosen; of those chosen, replace_prob become [MASK]. Every sequence has
    as many slots as a full one would use, so that no shape depends on the data (and nothing waits for the device);
    those left over have label -100.
    """
    rows, width = input_ids.shape
    special = (config.cls_token_id, config.sep_token_id, config.mask_token_id, config.pad_token_id)
    candidate = attention_mask.bool()
    for token in special:
        candidate = candidate & (input_ids != token)
    wanted = torch.round(attention_mask.sum(1, dtype=torch.float64) * config.mask_prob)
    wanted = wanted.clamp(min=1, max=config.max_predictions)
    slots = max(1, min(round(width * config.mask_prob), config.max_predictions or width))
    noise = torch.rand(rows, width, device=input_ids.device, generator=generator).masked_fill(~candidate, -1)
    best, columns = noise.topk(slots)  # distinct columns, so unused slots collide with no used one
    used = (best >= 0) & (torch.arange(slots, device=input_ids.device) < wanted[:, None])
    originals = input_ids.gather(1, columns)
    hidden = used & (torch.rand(rows, slots, device=input_ids.device, generator=generator) < config.replace_prob)
    masked_ids = input_ids.scatter(1, columns, originals.masked_fill(hidden, config.mask_token_id))
    positions = columns + torch.arange(rows, device=input_ids.device)[:, None] * width
    return ReferenceMasked(masked_ids, positions.flatten(), originals.masked_fill(~used, UNUSED).flatten())


class ReferenceAdamW:
    """Google's AdamW: no bias correction, decoupled decay, gradients first clipped by their global norm.

    g = g * clip / max(clip, norm)      m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
    p = p - lr (m / (sqrt(v) + eps) + decay p)      without decay where the name holds one of `exclude`
    """

    exclude = ("LayerNorm", "layer_norm", "bias")

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = dict(named_parameters)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self) -> Tensor:
        """One update from the gradients, which are then dropped. Returns their global norm () before clipping."""
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in given.values()]).sum().sqrt()
        scale = self.max_grad_norm / norm.clamp(min=self.max_grad_norm)
        for name, g in given.items():
            p, m, v = self.parameters[name], self.exp_avg[name], self.exp_avg_sq[name]
            m.lerp_(g * scale, 1 - self.betas[0])
            v.lerp_((g * scale).square(), 1 - self.betas[1])
            decay = 0.0 if any(part in name for part in self.exclude) else self.weight_decay
            p.sub_(self.lr * (m / (v.sqrt() + self.eps) + decay * p))
            p.grad = None
        return norm
