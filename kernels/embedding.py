"""embedding on the GPU: out = dropout(LayerNorm(word[ids] + position[positions] + token_type[types])), in one launch.

embedding_fwd_kernel: a program computes BLOCK_M tokens. It reads their rows of the three tables, and writes their rows
of out and, for the backward, mean and 1 / deviation, (T,) float32. If there is a projection, it is linear.py's, and its
input is saved too.

embedding_bwd_kernel: program p of P computes the blocks p, p + P, ... of tokens. It gathers the rows of the tables
again: as many bytes as reading their sum (T, E), which the forward would have had to write. It writes the gradient dz
(T, E) of that sum, and its tokens' sums for the norm's gradients, (P, 2, E), which partials.py adds in order. The
gradients of the tables are in embedding_tables.py. No atomics, and two runs give the same bits.

Cost: about 10 T E flops forward, 20 T E backward, and a Philox call (about 80 integer operations) for 16 elements each
way. Bytes in bf16: 4 T E + 40 T forward, 6 T E + 40 T backward (positions and types come from the cache). ELECTRA-
Small, T = 16,384, E = 128: 9 and 13 MB, at 4.3 TB/s 2 and 3 us, so the launches, 2 to 3 us each, are the limit; there
are no products but the projection's. Launches: 1 forward and 2 backward; eager PyTorch 7 (three gathers, two additions,
layer norm, dropout) and 3.

Tiles and statistics are those of dropout_add_layer_norm.py. Planned occupancy at E = 128: 9 programs of 4 warps a
multiprocessor forward, 4 backward. A step of ELECTRA calls the op twice, for the generator and the discriminator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout_add_layer_norm import PROGRAMS, tile
from .embedding_tables import sum_positions, sum_words
from .linear import input_gradient, product, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.groups import Dropout, Matrix, dropout, matrix
from .parts.layer_norm import Norm, load_rows, normalise, normalise_bwd
from .parts.partials import sum_partials
from .parts.philox import dropout_keep


class Tokens(NamedTuple):
    """Which row of each table every token has: addresses of (T,) int64."""

    words: Any
    positions: Any
    types: Any


class Tables(NamedTuple):
    """The three tables (., E): the address of each and the elements from one of its rows to the next."""

    word: Any
    word_row: Any
    position: Any
    position_row: Any
    token_type: Any
    token_type_row: Any


@triton.jit
def _table_rows(table, index_ptr, offs_m, rows, inside):
    """The rows of a table, a Matrix, at the indices of tokens offs_m: (M, D) float32."""
    index = tl.load(index_ptr + offs_m[:, None], mask=offs_m[:, None] < rows, other=0)
    return load_rows(table, index, inside)


@triton.jit
def _summed_rows(tokens, tables, offs_m, rows, inside):
    """The sum of the three rows of each token offs_m: (M, D) float32."""
    z = _table_rows(Matrix(tables.word, tables.word_row), tokens.words, offs_m, rows, inside)
    z += _table_rows(Matrix(tables.position, tables.position_row), tokens.positions, offs_m, rows, inside)
    z += _table_rows(Matrix(tables.token_type, tables.token_type_row), tokens.types, offs_m, rows, inside)
    return z


@triton.jit
def embedding_fwd_kernel(
    tokens,
    tables,
    norm,
    dropout,
    out_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    norm = Norm(*norm)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    z = _summed_rows(Tokens(*tokens), Tables(*tables), offs_m, rows, inside)
    weight = tl.load(norm.weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(norm.bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    mean, rstd, xhat = normalise(z, inside, eps, WIDTH)
    out = xhat * weight[None, :] + bias[None, :]
    if dropout is not None:
        dropout = Dropout(*dropout)
        row_ids = tl.load(dropout.row_ids + offs_m, mask=offs_m < rows, other=0)
        keep = dropout_keep(tl.load(dropout.seed), row_ids, 0, 0, dropout.threshold, BLOCK_M, BLOCK_D)
        out = tl.where(keep, out * dropout.scale, 0.0)
    ptrs = out_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(norm.mean + offs_m[:, None], mean, mask=offs_m[:, None] < rows)
    tl.store(norm.rstd + offs_m[:, None], rstd, mask=offs_m[:, None] < rows)


def _tokens(args: Any) -> tuple:
    """The Tokens of an EmbeddingArguments."""
    return tuple(t.contiguous() for t in (args.input_ids, args.position_ids, args.token_type_ids))


def _tables(args: Any) -> tuple:
    """The Tables of an EmbeddingArguments."""
    tables = unit_stride(args.word, args.position, args.token_type)
    return tuple(field for table in tables for field in matrix(table))


def embedding_fwd(args: Any) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32, and the projection's input (T, E) if there is a projection].

    args: an EmbeddingArguments (electra_fast/ops/embedding.py)
    """
    word, rows, width = args.word, args.input_ids.shape[0], args.word.shape[1]
    out = word.new_empty(rows, width)
    mean, rstd = (word.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if out.numel():
        chosen = tile(width)
        embedding_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            _tokens(args),
            _tables(args),
            (args.norm_weight.contiguous(), args.norm_bias.contiguous(), mean, rstd),
            dropout(args.row_ids, args.seed, args.dropout_p),
            out,
            rows,
            args.eps,
            **chosen,
        )
    if args.projection_weight is None:
        return out, [mean, rstd]
    return product(out, args.projection_weight, args.projection_bias)[0], [mean, rstd, out]


@triton.jit
def embedding_bwd_kernel(
    dout_ptr,
    tokens,
    tables,
    norm,
    dropout,
    dz_ptr,
    parts_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tokens, tables, norm = Tokens(*tokens), Tables(*tables), Norm(*norm)
    if dropout is not None:
        dropout = Dropout(*dropout)
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(norm.weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(program * BLOCK_M, rows, programs * BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M)
        inside = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
        z = _summed_rows(tokens, tables, offs_m, rows, inside)
        dout = load_rows(Matrix(dout_ptr, WIDTH), offs_m[:, None], inside)
        if dropout is not None:
            row_ids = tl.load(dropout.row_ids + offs_m, mask=offs_m < rows, other=0)
            keep = dropout_keep(tl.load(dropout.seed), row_ids, 0, 0, dropout.threshold, BLOCK_M, BLOCK_D)
            dout = tl.where(keep, dout * dropout.scale, 0.0)
        mean = tl.load(norm.mean + offs_m[:, None], mask=offs_m[:, None] < rows, other=0.0)
        rstd = tl.load(norm.rstd + offs_m[:, None], mask=offs_m[:, None] < rows, other=0.0)
        dz, xhat = normalise_bwd(z, mean, rstd, dout, weight, inside, WIDTH)
        dweight += dout * xhat
        dbias += dout
        ptrs = dz_ptr + offs_m[:, None] * WIDTH + columns[None, :]
        tl.store(ptrs, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    ptrs = parts_ptr + program * 2 * WIDTH + columns
    tl.store(ptrs, tl.sum(dweight, 0), mask=columns < WIDTH)
    tl.store(ptrs + WIDTH, tl.sum(dbias, 0), mask=columns < WIDTH)


def embedding_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out, mean, rstd, the projection's input] -> gradients of tables, norm and projection.

    args: an EmbeddingArguments
    """
    _, mean, rstd, *inputs = saved
    dout, projected = grads[0], []
    if args.projection_weight is not None:
        projected = weight_gradients(Product(dout, *inputs))
        dout = input_gradient(dout, args.projection_weight)
    parameters = (args.word, args.position, args.token_type, args.norm_weight, args.norm_bias)
    rows, width = dout.shape
    if dout.numel() == 0:
        return [t.new_zeros(t.shape) for t in parameters] + projected
    dword, dposition, dtoken_type, dweight, dbias = (t.new_empty(t.shape) for t in parameters)
    tokens = _tokens(args)
    chosen = tile(width)
    programs = min(PROGRAMS, triton.cdiv(rows, chosen["BLOCK_M"]))
    dz, parts = torch.empty_like(dout), dout.new_empty(programs, 2, width, dtype=torch.float32)
    embedding_bwd_kernel[(programs,)](
        dout.contiguous(),
        tokens,
        _tables(args),
        (args.norm_weight.contiguous(), None, mean, rstd),
        dropout(args.row_ids, args.seed, args.dropout_p),
        dz,
        parts,
        rows,
        **chosen,
    )
    sum_partials((parts, dweight, dbias))
    words, positions, types = tokens
    sum_words(dz, words, dword)
    sum_positions(dz, positions, types, dposition, dtoken_type)
    return [dword, dposition, dtoken_type, dweight, dbias, *projected]
