"""embedding on the GPU: the three tables gathered, summed, normalised and dropped in one launch.

embedding_fwd_kernel: a program takes BLOCK_M tokens and saves mean and 1 / deviation, (T,) float32. The projection,
where there is one, is linear.py's, and its input is saved too.

embedding_bwd_kernel: a program goes over every P-th block of tokens and gathers their rows again, as many bytes as
reading a saved (T, E) that the forward would have had to write. It gives the gradient dz (T, E) of the sum of the three
rows, and its tokens' sums for the norm, (P, 2, E), which partials.py adds in order. The gradients of the tables are in
embedding_tables.py. No atomics, two runs give the same bits.

Cost: about 10 T E flops forward, 20 T E backward, and a Philox call (about 80 integer operations) for 16 elements each
way. Bytes in bf16: 4 T E + 40 T forward, 6 T E + 40 T backward (positions and types come from the cache). ELECTRA-
Small, T = 16,384, E = 128: 9 and 13 MB, at 4.3 TB/s 2 and 3 us: the launches, 2 to 3 us each, are the roof, and no
products but the projection's, so 790 TFLOP/s do not come in. Launches: 1 forward and 2 backward; eager PyTorch 7 (three
gathers, two additions, layer norm, dropout) and 3.

Tiles and statistics are those of dropout_add_layer_norm.py. Planned occupancy at E = 128: 9 programs of 4 warps a
multiprocessor forward, 4 backward. A step of ELECTRA has two such passes, generator and discriminator.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout_add_layer_norm import PROGRAMS, tile
from .embedding_tables import sum_positions, sum_words
from .linear import input_gradient, product, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.groups import Matrix
from .parts.layer_norm import load_rows, normalise, normalise_bwd
from .parts.partials import sum_partials
from .parts.philox import dropout_keep


@triton.jit
def _rows_of(table_ptr, stride, index_ptr, offs_m, rows, there):
    """The rows of a table that tokens offs_m ask for, (M, D) float32."""
    index = tl.load(index_ptr + offs_m[:, None], mask=offs_m[:, None] < rows, other=0)
    return load_rows(Matrix(table_ptr, stride), index, there)


@triton.jit
def embedding_fwd_kernel(
    ids_ptr,
    types_ptr,
    places_ptr,
    word_ptr,
    position_ptr,
    token_type_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    seed_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    word_row,
    position_row,
    token_type_row,
    rows,
    eps,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    there = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    z = _rows_of(word_ptr, word_row, ids_ptr, offs_m, rows, there)
    z += _rows_of(position_ptr, position_row, places_ptr, offs_m, rows, there)
    z += _rows_of(token_type_ptr, token_type_row, types_ptr, offs_m, rows, there)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    mean, rstd, xhat = normalise(z, there, eps, WIDTH)
    out = xhat * weight[None, :] + bias[None, :]
    if DROPOUT:
        row_ids = tl.load(row_ids_ptr + offs_m, mask=offs_m < rows, other=0)
        keep = dropout_keep(tl.load(seed_ptr), row_ids, 0, 0, threshold, BLOCK_M, BLOCK_D)
        out = tl.where(keep, out * keep_scale, 0.0)
    ptrs = out_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(mean_ptr + offs_m[:, None], mean, mask=offs_m[:, None] < rows)
    tl.store(rstd_ptr + offs_m[:, None], rstd, mask=offs_m[:, None] < rows)


def embedding_fwd(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32], and the projection's input (T, E) if there is one."""
    rows, width = input_ids.shape[0], word.shape[1]
    out = word.new_empty(rows, width)
    mean, rstd = (word.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if out.numel():
        tables = unit_stride(word, position, token_type)
        chosen, threshold = tile(width), round(256 * dropout_p)
        embedding_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            *(t.contiguous() for t in (input_ids, token_type_ids, position_ids)),
            *tables,
            norm_weight.contiguous(),
            norm_bias.contiguous(),
            row_ids.contiguous(),
            seed,
            out,
            mean,
            rstd,
            *(t.stride(0) for t in tables),
            rows,
            eps,
            threshold,
            256 / max(1, 256 - threshold),
            DROPOUT=threshold > 0,
            **chosen,
        )
    if projection_weight is None:
        return out, [mean, rstd]
    return product(out, projection_weight, projection_bias)[0], [mean, rstd, out]


@triton.jit
def embedding_bwd_kernel(
    dout_ptr,
    ids_ptr,
    types_ptr,
    places_ptr,
    word_ptr,
    position_ptr,
    token_type_ptr,
    weight_ptr,
    row_ids_ptr,
    seed_ptr,
    mean_ptr,
    rstd_ptr,
    dz_ptr,
    parts_ptr,
    word_row,
    position_row,
    token_type_row,
    rows,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(program * BLOCK_M, rows, programs * BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M)
        there = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
        z = _rows_of(word_ptr, word_row, ids_ptr, offs_m, rows, there)
        z += _rows_of(position_ptr, position_row, places_ptr, offs_m, rows, there)
        z += _rows_of(token_type_ptr, token_type_row, types_ptr, offs_m, rows, there)
        dout = load_rows(Matrix(dout_ptr, WIDTH), offs_m[:, None], there)
        if DROPOUT:
            row_ids = tl.load(row_ids_ptr + offs_m, mask=offs_m < rows, other=0)
            keep = dropout_keep(tl.load(seed_ptr), row_ids, 0, 0, threshold, BLOCK_M, BLOCK_D)
            dout = tl.where(keep, dout * keep_scale, 0.0)
        mean = tl.load(mean_ptr + offs_m[:, None], mask=offs_m[:, None] < rows, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m[:, None], mask=offs_m[:, None] < rows, other=0.0)
        dz, xhat = normalise_bwd(z, mean, rstd, dout, weight, there, WIDTH)
        dweight += dout * xhat
        dbias += dout
        ptrs = dz_ptr + offs_m[:, None] * WIDTH + columns[None, :]
        tl.store(ptrs, dz.to(dz_ptr.dtype.element_ty), mask=there)
    ptrs = parts_ptr + program * 2 * WIDTH + columns
    tl.store(ptrs, tl.sum(dweight, 0), mask=columns < WIDTH)
    tl.store(ptrs + WIDTH, tl.sum(dbias, 0), mask=columns < WIDTH)


def embedding_bwd(
    grads: list[Tensor],
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
    saved: list[Tensor],
) -> list[Tensor]:
    """grads [dout], saved [out, mean, rstd, the projection's input] -> gradients of tables, norm and projection."""
    dout, projected = grads[0], []
    if projection_weight is not None:
        projected = weight_gradients(Product(dout, saved[3]))
        dout = input_gradient(dout, projection_weight)
    given = (word, position, token_type, norm_weight, norm_bias)
    rows, width = dout.shape
    if dout.numel() == 0:
        return [t.new_zeros(t.shape) for t in given] + projected
    dword, dposition, dtoken_type, dweight, dbias = (t.new_empty(t.shape) for t in given)
    ids, types, places = (t.contiguous() for t in (input_ids, token_type_ids, position_ids))
    tables = unit_stride(word, position, token_type)
    chosen, threshold = tile(width), round(256 * dropout_p)
    programs = min(PROGRAMS, triton.cdiv(rows, chosen["BLOCK_M"]))
    dz, parts = torch.empty_like(dout), dout.new_empty(programs, 2, width, dtype=torch.float32)
    embedding_bwd_kernel[(programs,)](
        dout.contiguous(),
        ids,
        types,
        places,
        *tables,
        norm_weight.contiguous(),
        row_ids.contiguous(),
        seed,
        *saved[1:3],
        dz,
        parts,
        *(t.stride(0) for t in tables),
        rows,
        threshold,
        256 / max(1, 256 - threshold),
        DROPOUT=threshold > 0,
        **chosen,
    )
    sum_partials((parts, dweight, dbias))
    sum_words(dz, ids, dword)
    sum_positions(dz, places, types, dposition, dtoken_type)
    return [dword, dposition, dtoken_type, dweight, dbias, *projected]
