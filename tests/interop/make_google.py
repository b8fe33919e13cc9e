"""Makes tests/data/google: a checkpoint as Google's code leaves it, by TensorFlow, and the logits it stands for.

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0
    /tmp/tf/bin/python tests/interop/make_google.py

The variables have the names and shapes that run_pretraining.py of google-research/electra gives them; the logits are
worked out here from their values, in float64, by the formulas of the paper.
"""

import json
import math
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf

HERE = Path(__file__).resolve().parent / "google"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"the of is a cat dog king queen sun hat red old big ##s .".split(),
]
EMBEDDING, POSITIONS, LAYERS = 6, 8, 2
HIDDEN = {"electra": 8, "generator": 4}
IDS = [[2, 5, 9, 7, 15, 3, 0, 0], [2, 11, 4, 13, 3, 10, 18, 3]]
MASK = [[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8]
TYPES = [[0] * 8, [0, 0, 0, 0, 0, 1, 1, 1]]


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "electra/embeddings/word_embeddings": (len(WORDS), EMBEDDING),
        "electra/embeddings/position_embeddings": (POSITIONS, EMBEDDING),
        "electra/embeddings/token_type_embeddings": (2, EMBEDDING),
        "generator_predictions/output_bias": (len(WORDS),),
    }

    def dense(name: str, rows: int, columns: int) -> None:
        found.update({f"{name}/kernel": (rows, columns), f"{name}/bias": (columns,)})

    def norm(name: str, width: int) -> None:
        found.update({f"{name}/LayerNorm/beta": (width,), f"{name}/LayerNorm/gamma": (width,)})

    norm("electra/embeddings", EMBEDDING)
    for scope, width in HIDDEN.items():
        dense(f"{scope}/embeddings_project", EMBEDDING, width)
        for i in range(LAYERS):
            layer = f"{scope}/encoder/layer_{i}"
            for part in ("query", "key", "value"):
                dense(f"{layer}/attention/self/{part}", width, width)
            dense(f"{layer}/attention/output/dense", width, width)
            norm(f"{layer}/attention/output", width)
            dense(f"{layer}/intermediate/dense", width, 4 * width)
            dense(f"{layer}/output/dense", 4 * width, width)
            norm(f"{layer}/output", width)
    dense("generator_predictions/dense", HIDDEN["generator"], EMBEDDING)
    norm("generator_predictions", EMBEDDING)
    dense("discriminator_predictions/dense", HIDDEN["electra"], HIDDEN["electra"])
    dense("discriminator_predictions/dense_1", HIDDEN["electra"], 1)
    return found


class Forward:
    """One head, as Google's code has it for widths below 128; no dropout."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = {name: value.astype(np.float64) for name, value in values.items()}

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.values[f"{name}/kernel"] + self.values[f"{name}/bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * self.values[f"{name}/LayerNorm/gamma"] + self.values[f"{name}/LayerNorm/beta"]

    @staticmethod
    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def encoder(self, scope: str) -> np.ndarray:
        tables = (self.values[f"electra/embeddings/{name}_embeddings"] for name in ("word", "token_type", "position"))
        word, kind, position = tables
        x = self.norm(word[np.array(IDS)] + kind[np.array(TYPES)] + position, "electra/embeddings")
        x = self.dense(x, f"{scope}/embeddings_project")
        for i in range(LAYERS):
            layer = f"{scope}/encoder/layer_{i}"
            q, k, v = (self.dense(x, f"{layer}/attention/self/{part}") for part in ("query", "key", "value"))
            scores = q @ k.swapaxes(1, 2) / math.sqrt(x.shape[-1]) - 10000.0 * (1 - np.array(MASK)[:, None])
            share = np.exp(scores - scores.max(-1, keepdims=True))
            x = self.norm(
                x + self.dense(share / share.sum(-1, keepdims=True) @ v, f"{layer}/attention/output/dense"),
                f"{layer}/attention/output",
            )
            inner = self.gelu(self.dense(x, f"{layer}/intermediate/dense"))
            x = self.norm(x + self.dense(inner, f"{layer}/output/dense"), f"{layer}/output")
        return x

    def generator(self) -> np.ndarray:
        rows = self.gelu(self.dense(self.encoder("generator"), "generator_predictions/dense"))
        words = self.values["electra/embeddings/word_embeddings"]
        return self.norm(rows, "generator_predictions") @ words.T + self.values["generator_predictions/output_bias"]

    def discriminator(self) -> np.ndarray:
        rows = self.gelu(self.dense(self.encoder("electra"), "discriminator_predictions/dense"))
        return self.dense(rows, "discriminator_predictions/dense_1")[..., 0]


def save(path: Path, values: dict[str, np.ndarray], shards: int) -> None:
    tf.reset_default_graph()
    for i, (name, value) in enumerate(values.items()):
        with tf.device(f"/cpu:{i % shards}"):
            tf.get_variable(name, initializer=value)
    saver = tf.train.Saver(sharded=shards > 1)
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": shards})) as session:
        session.run(tf.global_variables_initializer())
        saver.save(session, str(path), write_meta_graph=False, write_state=False)


if __name__ == "__main__":
    tf.disable_v2_behavior()
    HERE.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    values = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes().items()}
    moments = {}
    for name, value in values.items():
        moments[f"{name}/adam_m"] = 0.1 * value
        moments[f"{name}/adam_v"] = 0.01 * value * value
    save(HERE / "model.ckpt", values | moments | {"global_step": np.array(1000, np.int64)}, 1)
    save(HERE / "sharded.ckpt", values | {"global_step": np.array(1000, np.int64)}, 2)
    forward = Forward(values)
    logits = {name: getattr(forward, name)().round(9).tolist() for name in ("generator", "discriminator")}
    inputs = dict(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
    (HERE / "logits.json").write_text(json.dumps(inputs | logits) + "\n")
    (HERE / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
