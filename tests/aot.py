"""The subprocess of test_kernels.py that compiles kernels for GPUs (where they are interpreted, nothing compiles).

`python tests/aot.py` takes the configurations of ELECTRA-Small; `python benches compile` takes all, for all targets.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benches"))

import compile

SMALL = (
    r"faithful=False|attention.* (128|long) bf16 width=64 dropout=0.1|generator_head.* bf16 width=128 t.*=1.0|"
    r"(layer_norm|partials).* bf16 width=256 dropout=0.1|embedding.* bf16 width=128 dropout=0.1|adamw.* fp32|"
    r"linear.* bf16 256->768|ffn_block.* 256->1024->256 dropout=0.1|discriminator_head.* bf16 width=256|"
    r"attention_block.* 256 dropout=0.1|25 seeds"
)
PRODUCTS = ("attention", "generator_head", "linear", "ffn_block", "discriminator_head", "embedding_bwd_position")
OTHERS = r"attention_bwd.* 128 bf16 width=64 dropout=0.1"  # on other targets: that they compile at all

rows = [*compile.rows([90], SMALL), *compile.rows([80, 100], OTHERS)]
assert len(rows) <= 60
for row in rows:
    print(row)
    products = row["kernel"].startswith(PRODUCTS)
    products = products and not row["kernel"].endswith(("sample_kernel", "sum_kernel"))
    assert not products or row["tensor_core"] == {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}[row["target"]]
    assert row["target"] != "sm_90" or row["spill_bytes"] == 0
    assert row["shared_bytes"] <= {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448}[row["target"]]
assert {row["kernel"] for row in rows} == compile.kernels()
