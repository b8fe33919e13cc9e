"""Predictions: whole, in windows, in a stream, through the command line."""

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from electra_fast.cli.main import main
from electra_fast.config import NetworkConfig
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.encoder import Encoder, initialise
from electra_fast.tasks.answer_spans import best_span
from electra_fast.tasks.answers import read_answers
from electra_fast.tasks.batch import collate
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.evaluate import evaluate, fitted
from electra_fast.tasks.examples import Dataset, Example, Question, Sentence
from electra_fast.tasks.features import Feature, Featurizer
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.predict import predict, predict_stream, unlabelled
from electra_fast.tasks.scores import classification_scores
from electra_fast.tasks.settings import FinetuneConfig

WORDS = "the cat sat on a mat and saw dogs run home".split()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([[" ".join(WORDS)] * 3], 100)


def model_for(tokenizer: Tokenizer, kind: str, benchmark: str | None = None, **changes: Any) -> TaskModel:
    torch.manual_seed(3)
    config = NetworkConfig(
        vocab_size=tokenizer.vocab_size, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    encoder = Encoder(config)
    initialise(encoder, 0.5)
    labels = ("a", "b", "c") if kind in ("classification", "multilabel", "tagging") else ()
    scale = 5.0 if benchmark == "stsb" else 1.0
    return TaskModel(encoder, Task(kind, benchmark, labels, scale), FinetuneConfig(**changes)).eval()


def examples(kind: str) -> list[Any]:
    texts = [" ".join(WORDS[i % 11] for i in range(j, 2 * j + 2)) for j in range(12)]
    if kind == "tagging":
        return [Sentence(str(i), tuple(text.split())) for i, text in enumerate(texts)]
    if kind == "qa":
        return [Question(str(i), "who saw dogs", text) for i, text in enumerate(texts)]
    return [Example(str(i), (text, "the mat")) for i, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging", "qa"])
def test_neighbours_in_a_batch_change_nothing(tokenizer: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for(tokenizer, kind)
    together = predict(model, tokenizer, examples(kind))
    alone = [predict(model, tokenizer, [example]) for example in examples(kind)]
    values = [each.values[0] for each in alone]
    assert together.values == (pytest.approx(values, abs=1e-5) if kind == "regression" else values)
    assert kind == "regression" or len(set(values)) > 1, "all alike prove nothing"


@pytest.mark.parametrize("kind", ["classification", "tagging", "qa"])
def test_labels_are_not_looked_at(tokenizer: Tokenizer, kind: str) -> None:
    bare = examples(kind)
    known: list[Any] = [
        Example(e.id, e.texts, "b") if kind == "classification"
        else Sentence(e.id, e.words, ("a",) * len(e.words)) if kind == "tagging"
        else Question(e.id, e.question, e.context, ((0, e.context[:3]),))
        for e in bare
    ]  # fmt: skip
    model = model_for(tokenizer, kind)
    assert predict(model, tokenizer, known) == predict(model, tokenizer, bare)


def test_numbers_are_on_the_benchmarks_scale(tokenizer: Tokenizer) -> None:
    fives, ones = (predict(model_for(tokenizer, "regression", b), tokenizer, examples("regression")).values
                   for b in ("stsb", None))  # fmt: skip
    assert fives == pytest.approx([5 * value for value in ones])


def test_a_sentence_longer_than_the_model_has_a_tag_for_each_word(tokenizer: Tokenizer) -> None:
    words = tuple(WORDS * 20)
    found = predict(model_for(tokenizer, "tagging"), tokenizer, [Sentence("0", words), Sentence("1", words[:3])])
    assert [len(tags) for tags in found.values] == [220, 3]
    assert found.details[0]["words"] == words


def model_that_answers_run(tokenizer: Tokenizer) -> TaskModel:
    """Its weights are set by hand, so that the token `run` is a start and an end, wherever it stands."""
    model = model_for(tokenizer, "qa", head="huggingface", stride=4)
    embeddings = model.encoder.embeddings
    with torch.no_grad():
        for p in model.encoder.layers.parameters():
            p.zero_()
        for layer in model.encoder.layers:
            layer.attention_norm.weight.fill_(1)  # type: ignore[union-attr, operator]
            layer.ffn_norm.weight.fill_(1)  # type: ignore[union-attr, operator]
        embeddings.position.weight.zero_()
        embeddings.token_type.weight.zero_()
        run = tokenizer.encode(["run"])[0][0]
        feature = Featurizer(tokenizer, "qa", (), model.settings, 32)([Question("q", "who", "run")])[0]
        assert run in feature.ids
        key = torch.zeros(1, dtype=torch.int64)
        hidden = model.hidden(collate([feature], [0], "qa"), key, key)[feature.ids.index(run)]
        model.head.out.weight.copy_(hidden.expand(2, -1))
    return model


@pytest.mark.parametrize("answer", ["run", "run\u0301", "r\u0301un\u0323\u0301", "run\u0345", "run\ufe0f"])
@pytest.mark.parametrize("after", ["", " and", ", and", "\n"])
def test_an_answer_ends_behind_its_combining_marks(tokenizer: Tokenizer, answer: str, after: str) -> None:
    """The tokenizer strips accents, so that the token is "run" in each; the answer is what the context has."""
    context = f"the cat saw {answer}{after}"
    found = predict(model_that_answers_run(tokenizer), tokenizer, [Question("q", "who", context)])
    assert found.values == [answer] and found.details[0]["start"] == 12
    question = Question("q", "who", context, ((12, answer),))
    assert evaluate(model_that_answers_run(tokenizer), tokenizer, Dataset("qa", "squad1", [question], []))[0] == {
        "exact": 1.0, "f1": 1.0, "missing": 0
    }  # fmt: skip


def test_an_answer_far_into_a_long_context_is_found(tokenizer: Tokenizer) -> None:
    model = model_that_answers_run(tokenizer)
    context = " ".join(["the cat sat on a mat"] * 20 + ["run"] + ["saw dogs"] * 9)
    found = predict(model, tokenizer, [Question("q", "who", context)])
    assert found.values == ["run"] and found.details[0]["start"] == context.index("run")


def test_the_best_span_by_brute_force() -> None:
    config = FinetuneConfig(answer_length=4)
    central = [True] * 3 + [False] * 2 + [True] * 5
    feature = Feature(0, [0] * 14, 3, [], [], 0, (3, 13), [(10 * i, 10 * i + 9) for i in range(10)], central)
    for seed in range(50):
        torch.manual_seed(seed)
        start, end = torch.randn(14), torch.randn(14, 14)
        starts, ends = torch.randperm(14)[:6], torch.stack([torch.randperm(14)[:5] for _ in range(6)])
        beam = [start[starts], starts, torch.stack([end[s][e] for s, e in zip(starts, ends, strict=True)]), ends]
        spans = [
            (float(start[s] + end[s, e]), 10 * (int(s) - 3), 10 * (int(e) - 3) + 9)
            for s, row in zip(starts, ends, strict=True)
            for e in row
            if 3 <= s < 13 and 3 <= e < 13 and s <= e < s + 4 and central[s - 3]
        ]
        assert best_span(feature, beam, config) == pytest.approx(max(spans, default=(-float("inf"), 0, 0)))
    nothing = [torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1).long()]
    assert best_span(feature, nothing, config)[0] == -float("inf")


def test_no_answer_above_the_threshold(tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer, "qa", "squad2")
    odds = predict(model, tokenizer, examples("qa")).null_odds
    middle = sorted(odds.values())[6]
    model.task = dataclasses.replace(model.task, null_threshold=middle)
    found = predict(model, tokenizer, examples("qa"))
    for value, example in zip(found.values, examples("qa"), strict=True):
        assert (value == "") == (odds[example.id] > middle)
        assert found.answers[example.id] != ""
    assert "null_odds" in found.details[0]


def test_labels_are_those_whose_sigmoid_is_above_a_half(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As transformers computes it for problem_type multi_label_classification, from the directory that we save."""
    import transformers

    model = model_for(tokenizer, "multilabel", head="huggingface")
    model.save(tmp_path / "m", tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert theirs.config.problem_type == "multi_label_classification"
    pipe = transformers.pipeline(
        "text-classification", model=theirs, tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    )
    texts = [e.texts[0] for e in examples("multilabel")[:6]]
    found = predict(model, tokenizer, [Example(str(i), (text,)) for i, text in enumerate(texts)])
    for text, labels, detail in zip(texts, found.values, found.details, strict=True):
        scores = {each["label"]: each["score"] for each in pipe(text, top_k=None)}
        assert labels == tuple(label for label in "abc" if scores[label] > 0.5)
        assert detail == {"labels": labels, "probabilities": pytest.approx(scores, abs=1e-5)}
    assert len(set(map(len, found.values))) > 1, "sets of one size alone prove nothing"


def test_a_multi_label_model_of_transformers_is_known_by_its_problem_type(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    model_for(tokenizer, "multilabel", head="huggingface").save(tmp_path / "m", tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    model, _ = TaskModel.load(tmp_path / "theirs")
    assert (model.task.kind, model.task.labels) == ("multilabel", ("a", "b", "c"))
    data = Dataset("multilabel", None, [Example("0", ("the cat",), ("b",)), Example("1", ("dogs",), ())], ["b"])
    model.task = fitted(model.task, data, Path("f"))
    scores, _ = evaluate(model, tokenizer, data)
    assert set(scores) == {"f1_micro", "f1_macro", "accuracy"}
    single = Dataset("classification", None, [Example("0", ("the cat",), "b")], ["b"])
    with pytest.raises(ValueError, match="f holds data for classification, and the model was trained for multilabel"):
        fitted(model.task, single, Path("f"))


def test_a_stream_is_answered_group_by_group(tokenizer: Tokenizer) -> None:
    model, asked = model_for(tokenizer, "classification"), 0

    def source() -> Any:
        nonlocal asked
        for example in examples("classification"):
            asked += 1
            yield example

    rows = predict_stream(model, tokenizer, source(), 5)
    assert next(rows)["id"] == "0" and asked == 5
    assert [row["id"] for row in rows] == [str(i) for i in range(1, 12)]


def test_transformers_unnamed_classes_take_the_names_of_the_data() -> None:
    data = Dataset("classification", None, [Example("0", ("x",), "no")], ["no", "yes"])
    assert fitted(Task("classification", None, ("LABEL_0", "LABEL_1")), data, Path("f")).labels == ("no", "yes")
    with pytest.raises(ValueError, match="f has the label 'no'"):
        fitted(Task("classification", None, ("a", "b")), data, Path("f"))


def test_numbered_classes_are_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Eleven classes without names: what transformers' model predicts is right by our accuracy, class 10 included."""
    import transformers

    config = transformers.ElectraConfig(
        vocab_size=tokenizer.vocab_size, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, initializer_range=2.0, num_labels=11,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.ElectraForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    texts = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    rows = []
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        rows.append((text, int(theirs(torch.tensor([ids])).logits.argmax())))
    classes = {label for _, label in rows}
    assert 10 in classes and len(classes) > 3
    model, tokenizer = TaskModel.load(tmp_path / "model")
    for path, kept in ((tmp_path / "all.tsv", rows), (tmp_path / "no2.tsv", [r for r in rows if r[1] != min(classes)])):
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in kept))
        data = read_dataset(path, "classification")
        model.task = fitted(Task("classification", None, tuple(f"LABEL_{i}" for i in range(11))), data, path)
        assert evaluate(model, tokenizer, data)[0]["accuracy"] == 1.0


def test_names_for_unnamed_classes() -> None:
    def names(count: int, *labels: str) -> tuple[str, ...]:
        task = Task("classification", None, tuple(f"LABEL_{i}" for i in range(count)))
        return fitted(task, Dataset("classification", None, [], list(labels)), Path("f")).labels

    assert names(3, "0", "2") == ("0", "1", "2")
    assert names(3, "1", "2", "3") == ("1", "2", "3")
    assert names(3, "LABEL_1") == names(3) == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ValueError, match="f has the labels bad, good, and the model's 3 classes have no names .*id2la"):
        names(3, "bad", "good")


@pytest.fixture
def saved(tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for kind in ("classification", "tagging", "qa"):
        paths[kind] = tmp_path / kind
        model_for(tokenizer, kind).save(paths[kind], tokenizer)
    return paths


def test_command_lines(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "the cat", "label": "a"}\n{"text": "dogs run", "label": "c"}\n')
    model = str(saved["classification"])
    assert main(["evaluate", "--model", model, "--data", str(tmp_path / "d.jsonl")]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"accuracy", "f1", "matthews"}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\ndogs run\n")))
    assert main(["predict", "--model", model]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == ["0", "1"] and sum(rows[0]["probabilities"].values()) == pytest.approx(
        1, abs=1e-4
    )
    assert main(["predict", "--model", model, str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "p.csv")]) == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "id,prediction" and [line.split(",")[1] for line in lines[1:]] == [row["label"] for row in rows]
    capsys.readouterr()

    (tmp_path / "s.txt").write_text("the X a\ncat X b\n\ndogs X c\n")
    assert main(["predict", "--model", str(saved["tagging"]), str(tmp_path / "s.txt")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["words"] for row in rows] == [["the", "cat"], ["dogs"]]

    qa = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "the cat sat on a mat", "qas": [
        {"id": "q", "question": "who sat", "answers": [{"text": "cat", "answer_start": 4}]}]}]}]}  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps(qa))
    out = str(tmp_path / "a.json")
    assert main(["evaluate", "--model", str(saved["qa"]), "--data", str(tmp_path / "q.json"), "--out", out]) == 0
    answers = read_answers(out)
    assert list(answers) == ["q"] and answers["q"] in "the cat sat on a mat"
    assert json.loads(capsys.readouterr().out)["missing"] == 0


def test_files_are_read_as_the_options_say(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed lines are told on stderr and cost no other answer; words and tags are in the columns that are named."""
    monkeypatch.chdir(tmp_path)
    Path("d.tsv").write_text("text\tlabel\nthe cat\ta\nbad\ndogs run\tb\n")
    model = ["--model", str(saved["classification"])]
    note = "d.tsv: left out 1 malformed line (3), the first of which: d.tsv, line 3 has 1 column;"
    for command in (["predict", "d.tsv"], ["predict", "d.tsv", "--out", "p.csv"], ["evaluate", "--data", "d.tsv"]):
        assert main([*command, *model]) == 0
        said = capsys.readouterr()
        assert note in said.err
        if command[1:] == ["d.tsv"]:
            assert [json.loads(line)["id"] for line in said.out.splitlines()] == ["0", "2"]
        assert main([*command, *model, "--max-bad-lines", "0"]) == 1
        assert "electra-fast: d.tsv, line 3 has 1 column;" in capsys.readouterr().err
        assert main([*command, *model, "--max-bad-lines", "-1"]) == 1
        assert "max_bad_lines is -1; it must be at least 0" in capsys.readouterr().err
    Path("t.tsv").write_text("1\tthe\ta\tx\n2\tcat\tb\tx\n")
    model = ["--model", str(saved["tagging"])]
    assert main(["predict", "t.tsv", *model]) == 1
    assert "t.tsv counts 1, 2, 3 in its first column" in capsys.readouterr().err
    assert main(["predict", "t.tsv", *model, "--word-column", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == ["the", "cat"]
    assert main(["evaluate", "--data", "t.tsv", *model, "--word-column", "2", "--tag-column", "3"]) == 0
    assert "tags such as a mark no spans by BIO" in capsys.readouterr().err


def test_a_bad_line_of_stdin_has_a_row_of_its_own(
    saved: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"the cat\n\x9b2J\nthe\tcat\tsat\nsaw \xc2\x9b2J dogs\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main(["predict", "--model", str(saved["classification"]), "--at-once", "1"]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"] and "label" in rows[0] and "label" in rows[3]
    assert rows[1] == {"id": "1", "error": "stdin, line 2 holds the byte 0x9b, which is no UTF-8; convert the file, "
                       "such as with iconv -f LATIN1 -t UTF-8"}  # fmt: skip
    assert set(rows[2]) == {"id", "error"} and "stdin, line 3 has 3 texts; one text, or two" in rows[2]["error"]
    assert "\x9b" not in out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO('{"words": ["saw", "\x9b2J"]}'.encode())))
    assert main(["predict", "--model", str(saved["tagging"])]) == 0
    out = capsys.readouterr().out
    assert "\x9b" not in out and json.loads(out)["words"] == ["saw", "\x9b2J"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--data", "none.jsonl"], "none.jsonl"),
        (["evaluate", "--data", "other.jsonl"], "other.jsonl has the label 'z' .* which training lacks"),
        (["predict", "--at-once", "0"], "at_once is 0; it must be at least 1"),
        (["predict", "--out", "x.csv"], "out is x.csv, .* and 0 files are given"),
    ],
)
def test_mistakes(
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"text": "the cat", "label": "z"}\n')
    assert main([*arguments, "--model", str(saved["classification"])]) == 1
    assert re.search(f"electra-fast: .*{said}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("task.json", {"task": []}, "task.json: .*finetune did not write it so"),
        ("task.json", {"task": {"kind": "sorting"}}, "task.json: the kind of task is 'sorting'"),
        ("task.json", {"task": {"kind": ["qa"]}}, "task.json: kind is .'qa'., a list; it must be"),
        ("task.json", {"task": {"labels": [["a"], ["b"], {}]}}, "task.json: labels must be a list of strings"),
        ("task.json", {"task": {"labels": 3}}, "task.json: labels must be a list of strings"),
        ("task.json", {"task": {"benchmark": "mine"}}, "task.json: benchmark is 'mine'; it must be None or one of"),
        ("task.json", {"task": {"null_threshold": float("nan")}}, "task.json: null_threshold is nan"),
        ("task.json", {"settings": {"beam": "x"}}, "task.json: beam is 'x'"),
        ("config.json", {"id2label": [1, 2]}, 'config.json has an odd "id2label"; it maps 0, 1'),
        ("config.json", {"id2label": {"x": "a"}}, 'config.json has an odd "id2label"; it maps 0, 1'),
        ("config.json", {"architectures": 3}, 'config.json has an odd "architectures"'),
    ],
)
def test_odd_files_of_a_model(
    saved: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    """One sentence with the file."""
    path = saved["classification"] / name
    values = json.loads(path.read_text())
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(values.get(key), dict) and name == "task.json"
        values[key] = values[key] | value if inner else value
    path.write_text(json.dumps(values))
    (path.parent / "SHA256SUMS").unlink()
    if name == "config.json":
        (path.parent / "task.json").unlink()
    (tmp_path / "d.jsonl").write_text('{"text": "the cat", "label": "a"}\n')
    assert main(["evaluate", "--model", str(path.parent), "--data", str(tmp_path / "d.jsonl")]) == 1
    assert re.fullmatch(f"electra-fast: .*{said}.*\n", capsys.readouterr().err)


def test_scores_are_the_official_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": e.texts[0], "label": "abc"[i % 3]}) + "\n"
                for i, e in enumerate(examples("classification")))
    )  # fmt: skip
    data, model = read_dataset(tmp_path / "d.jsonl", "classification"), model_for(tokenizer, "classification")
    scores, found = evaluate(model, tokenizer, data)
    assert scores == classification_scores(found.values, [e.label for e in data.examples], ("a", "b", "c"))  # type: ignore[union-attr, misc]
    assert unlabelled(data.examples[0]).label is None
