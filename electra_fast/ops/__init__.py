"""The ops of ELECTRA, each with a reference, C++ and Triton behind one name; CONTRIBUTING.md says how to add one."""

from electra_fast.ops.adamw import adamw
from electra_fast.ops.attention import attention
from electra_fast.ops.attention_block import attention_block
from electra_fast.ops.corrupt import corrupt
from electra_fast.ops.decode_attention import decode_attention
from electra_fast.ops.decoder_step import decoder_step
from electra_fast.ops.discriminator_head import discriminator_head
from electra_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from electra_fast.ops.embedding import embedding
from electra_fast.ops.encoder import encoder
from electra_fast.ops.ffn_block import ffn_block
from electra_fast.ops.generator_head import generator_head
from electra_fast.ops.linear import linear
from electra_fast.ops.masking import masking
from electra_fast.ops.top_k_words import top_k_words

__all__ = [
    "adamw",
    "attention",
    "attention_block",
    "corrupt",
    "decode_attention",
    "decoder_step",
    "discriminator_head",
    "dropout_add_layer_norm",
    "embedding",
    "encoder",
    "ffn_block",
    "generator_head",
    "linear",
    "masking",
    "top_k_words",
]
