"""The subprocess of test_kernels.py that compiles kernels for GPUs (where they are interpreted, nothing compiles).

`aot.py all` takes every kernel in the configurations of ELECTRA-Small, `aot.py some` two of these; `python
benches compile` takes all configurations for all targets.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

from tools import compile

SMALL = (
    r"(faithful|spans)=False|attention.* (128|512|long) bf16 width=64 dropout=0.1|"
    r"generator_head.* bf16 width=(128|768) t.*=1.0|"
    r"(layer_norm|partials).* bf16 width=256 dropout=0.1|embedding.* bf16 width=128 dropout=0.1|"
    r"adamw.* fp32 .*True|"
    r"linear.* bf16 256->768|(ffn_block|linear_bwd_weight).* 256->1024->256 dropout=0.1|"
    r"discriminator_head.* bf16 width=256|attention_block.* 256 dropout=0.1|25 seeds|"
    r"decode_attention.* bf16 width=64|top_k_words.* bf16 width=128 k=8"
)
SOME = r"dropout_add_layer_norm_fwd.* bf16 width=256 dropout=0.1|linear_fwd.* bf16 256->768 gelu=False"
PRODUCTS = ("attention", "generator_head", "linear", "ffn_block", "discriminator_head", "embedding_bwd_position")
PLANNED = dict(  # programs that a multiprocessor of an H100 holds at once, at least; the docstrings say why
    adamw_norm=5,
    attention_block_bwd=2,
    adamw_update=3,  # 4 without copies
    corrupt_fwd=4,
    decode_attention=8,
    discriminator_head_fwd=3,
    dropout_add_layer_norm_fwd=10,
    dropout_add_layer_norm_bwd=4,
    embedding_fwd=9,
    embedding_bwd=4,
    embedding_bwd_word=16,
    embedding_bwd_join=16,
    embedding_bwd_position=2,
    generator_head_sample=4,
    masking_fwd=3,
    sum_partials=12,
    top_k_words=4,
)
CORES = {"sm_80": "mma", "sm_86": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}
SHARED = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448}
OTHERS = r"attention_bwd.* 128 bf16 width=64 dropout=0.1"  # on other targets: that they compile at all
LARGE = r"linear_fwd.* bf16 256->1024 gelu=False|linear_bwd_input.* bf16 256->1024 gelu=False"  # must fit in 99 KB too

if sys.argv[1] == "some":
    rows = list(compile.rows([90], SOME))
    assert 2 <= len(rows) <= 4, len(rows)
else:
    rows = [*compile.rows([90], SMALL), *compile.rows([80, 100], OTHERS), *compile.rows([86], LARGE)]
    assert len(rows) <= 60
    assert {row["kernel"] for row in rows} == compile.kernels()
for row in rows:
    print(row)
    products = row["kernel"].startswith(PRODUCTS)
    products = products and not row["kernel"].endswith(("sample_kernel", "tiles_kernel", "logits_kernel"))
    assert not products or row["tensor_core"] == CORES[row["target"]]
    assert row["target"] != "sm_90" or row["spill_bytes"] == 0
    planned = PLANNED.get(row["kernel"].removesuffix("_kernel"), 1)
    assert row["programs_per_sm"] >= (planned if row["target"] == "sm_90" else 1)
    assert row["shared_bytes"] <= SHARED[row["target"]]
