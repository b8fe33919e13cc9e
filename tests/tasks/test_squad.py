"""SQuAD: reading, the official scores, and what is refused."""

import contextlib
import copy
import io
import json
import tarfile

import pytest

from electra_fast.tasks import files
from electra_fast.tasks.answers import read_answers, squad_scores
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import Question

CONTEXT = "The Normans (Norman: Nourmands) were the people who in the 10th century gave their name to Normandy."
V2 = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "a",
                            "question": "When?",
                            "answers": [
                                {"text": "10th century", "answer_start": 59},
                                {"text": "the 10th century", "answer_start": 55},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "b",
                            "question": "Who?",
                            "answers": [{"text": "The Normans", "answer_start": 0}],
                            "is_impossible": False,
                        },
                        {
                            "id": "c",
                            "question": "What?",
                            "answers": [{"text": "Normandy.", "answer_start": 91}],
                            "is_impossible": False,
                        },
                        {
                            "id": "d",
                            "question": "Why?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "x", "answer_start": -7}],
                        },
                        {"id": "e", "question": "How?", "answers": [], "is_impossible": True},
                        {
                            "id": "f",
                            "question": "Which?",
                            "answers": [{"text": "the", "answer_start": 37}],
                            "is_impossible": False,
                        },
                    ],
                }
            ],
        }
    ],
}
PREDICTED = {"a": "in the 10th Century!", "b": "people", "c": "a normandy", "d": "Normans", "e": "", "f": ""}
ODDS = {"a": -3.5, "b": 0.5, "c": -1.0, "d": 0.25, "e": 2.0, "f": 0.75}
VERSION_2 = dict(  # what the official script gives for these
    exact=3 / 6, f1=3.8 / 6, has_answer_exact=2 / 4, has_answer_f1=2.8 / 4, no_answer_exact=1 / 2,
    best_exact=3 / 6, best_exact_threshold=-1.0, best_f1=3.8 / 6, best_f1_threshold=-1.0,
)  # fmt: skip


@pytest.fixture
def v1() -> dict:
    whole = copy.deepcopy(V2)
    whole["version"] = "1.1"
    paragraph = whole["data"][0]["paragraphs"][0]
    paragraph["qas"] = [qa for qa in paragraph["qas"] if qa["answers"]]
    for qa in paragraph["qas"]:
        del qa["is_impossible"]
    return whole


def written(path, whole):
    path.write_text(json.dumps(whole))
    return path


def read_squad(path, **options):
    found = read_dataset(path, "qa", **(dict(max_bad_lines=0) | options))
    assert not found.notes
    return found.name, found.examples


def test_reading(tmp_path, v1):
    name, questions = read_squad(written(tmp_path / "a.json", V2))
    assert name == "squad2" and [q.id for q in questions] == list("abcdef")
    assert questions[0] == Question("a", "When?", CONTEXT, ((59, "10th century"), (55, "the 10th century")))
    assert [q.impossible for q in questions] == [False, False, False, True, True, False]
    assert questions[3] == Question("d", "Why?", CONTEXT, (), True)
    name, questions = read_squad(written(tmp_path / "b.json", v1))
    assert name == "squad1" and [q.id for q in questions] == list("abcf")
    assert read_squad(tmp_path / "a.json", labelled=False)[1][0] == Question("a", "When?", CONTEXT)


def test_an_offset_counts_characters(tmp_path, v1):
    """Not bytes, not UTF-16 units; a surrogate that JSON allows is one character."""
    paragraph = v1["data"][0]["paragraphs"][0]
    paragraph["context"] = "é\U0001f600\ud800 = yes"
    paragraph["qas"] = [{"id": "1", "question": "?", "answers": [{"text": "yes", "answer_start": 6}]}]
    assert read_squad(written(tmp_path / "a.json", v1))[1][0].context == "é\U0001f600\ufffd = yes"


def test_version_2_without_its_name(tmp_path):
    whole = {"data": V2["data"]}
    assert read_squad(written(tmp_path / "a.json", whole))[0] == "squad2"


def test_scores_of_version_2(tmp_path):
    """Figures of the official evaluate-v2.0.py with --na-prob-file, its --na-prob-thresh too high to apply."""
    _, questions = read_squad(written(tmp_path / "a.json", V2))
    found = squad_scores(PREDICTED, questions, "squad2", ODDS)
    assert found.pop("missing") == 0
    assert found == pytest.approx(VERSION_2, abs=1e-9)
    assert "best_f1" not in squad_scores(PREDICTED, questions, "squad2")


def test_rules_that_differ(tmp_path):
    """Nothing but articles and punctuation on both sides: F1 0 by v1.1, 1 by v2.0; equal by both."""
    question = [Question("x", "?", "the end", ((0, "the"),))]
    assert squad_scores({"x": "a!"}, question, "squad1") == dict(exact=1, f1=0, missing=0)
    assert squad_scores({"x": "a!"}, question, "squad2") == pytest.approx(
        dict(exact=1, f1=1, missing=0, has_answer_exact=1, has_answer_f1=1)
    )
    question = [
        Question("x", "?", "the end", ((0, "the"), (4, "end")))
    ]  # v2.0 drops an answer of which nothing is left
    assert [squad_scores({"x": ""}, question, name)["exact"] for name in ("squad1", "squad2")] == [1, 0]


def test_missing_predictions_count_nothing(tmp_path):
    _, questions = read_squad(written(tmp_path / "a.json", V2))
    some = {"a": "10th century", "e": "", "unknown": "x"}
    for name in ("squad1", "squad2"):
        found = squad_scores({"a": "10th century"}, questions[:3], name)
        assert (found["exact"], found["f1"], found["missing"]) == pytest.approx((1 / 3, 1 / 3, 2))
    found = squad_scores(some, questions, "squad2", ODDS)
    assert (found["exact"], found["no_answer_exact"], found["missing"]) == pytest.approx((2 / 6, 1 / 2, 4))
    assert (found["best_exact"], found["best_exact_threshold"]) == pytest.approx((2 / 6, -3.5))
    with pytest.raises(ValueError, match="null_odds lacks question b, which predicted has"):
        squad_scores(PREDICTED, questions, "squad2", {"a": 0.0})
    with pytest.raises(ValueError, match="no questions are given"):
        squad_scores({}, [])


@pytest.mark.parametrize(
    ("system", "exact", "f1", "missing"),
    [
        ("BERT__ensemble", 86.2062, 92.1956, 0),
        ("Logistic_Regression", 40.1419, 50.9815, 13),
        pytest.param("Match_LSTM", 67.6348, 76.7556, 0, marks=pytest.mark.slow),
        pytest.param("SLQA", 81.9489, 88.3839, 0, marks=pytest.mark.slow),
        pytest.param("r_net", 82.4693, 88.4779, 0, marks=pytest.mark.slow),
    ],
)
def test_published_predictions(data, tmp_path, system, exact, f1, missing):
    """Published predictions for the development set score what the leaderboard's own script gives."""
    name, questions = read_squad(data / "squad" / "dev-v1.1.json.xz")
    with tarfile.open(data / "squad" / "published-dev-predictions.tar.xz") as archive:
        member = next(m for m in archive.getnames() if m.rpartition("/")[2].startswith(f"1.1.{system}"))
        (tmp_path / "p.json").write_bytes(archive.extractfile(member).read())
    found = squad_scores(read_answers(tmp_path / "p.json"), questions, name)
    assert (name, len(questions), found["missing"]) == ("squad1", 10570, missing)
    assert (round(100 * found["exact"], 4), round(100 * found["f1"], 4)) == (exact, f1)


@pytest.mark.parametrize(("file", "count"), [("new_wiki", 7938), ("reddit", 9803), ("amazon_reviews", 9885)])
def test_squadshifts(data, file, count):
    name, questions = read_squad(data / "squadshifts" / f"{file}.json.xz")
    assert (name, len(questions)) == ("squad1", count)


def paragraph(whole):
    return whole["data"][0]["paragraphs"][0]


def first(whole):
    return paragraph(whole)["qas"][0]


def answer(whole):
    return first(whole)["answers"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: answer(w).update(answer_start="x"), r"question a, answers\[0\] has 'x' as 'answer_start'; SQuAD"),
        (lambda w: answer(w).update(answer_start=True), "has 'True' as 'answer_start'"),
        (lambda w: answer(w).update(text=3), "has a number in 'text'; SQuAD has a string there"),
        (lambda w: first(w).update(answers=[]), "question a has is_impossible false and no answers"),
        (lambda w: first(w).update(answers=[{"text": " "}]), "question a has is_impossible false and no answers"),
        (lambda w: first(w).update(answers=3), "question a has a number in 'answers'"),
        (lambda w: first(w).update(is_impossible=True), "question a is impossible and has the answer '10th century'"),
        (lambda w: first(w).update(is_impossible="no"), "has a string in 'is_impossible'; SQuAD has true or false"),
        (lambda w: first(w).update(id="b"), "has the id b twice; an id names one example"),
        (lambda w: first(w).update(id=[3]), "has a list in 'id'"),
        (lambda w: first(w).pop("question"), r"a.json, data\[0\], paragraphs\[0\], qas\[0\] has no 'question'"),
        (lambda w: first(w).pop("answers"), r"question a has no 'answers'"),
        (lambda w: paragraph(w).pop("context"), r"data\[0\], paragraphs\[0\] has no 'context' \(found: \['qas'\]\)"),
        (lambda w: paragraph(w).update(context=" "), "has an empty context"),
        (lambda w: w["data"].append(3), r"data\[1\] is a number; SQuAD has an object there"),
        (lambda w: w.pop("data"), "a.json has no 'data'"),
        (lambda w: w["data"].clear(), "a.json has no questions"),
    ],
)  # fmt: skip
def test_refused(tmp_path, damage, message):
    whole = copy.deepcopy(V2)
    damage(whole)
    with pytest.raises(ValueError, match=message):
        read_squad(written(tmp_path / "a.json", whole))


def test_version_1_needs_answers(tmp_path, v1):
    paragraph(v1)["qas"][1]["answers"] = []
    path = written(tmp_path / "a.json", v1)
    with pytest.raises(ValueError, match="question b has no answer; give one, or set is_impossible"):
        read_squad(path)
    assert len(read_squad(path, labelled=False)[1]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a.json is a list; predictions are an object"),
        ('{"a": 3}', "a.json has a number for a; write a string"),
        ('{"a": ', "a.json is no JSON"),
        ("", "a.json is empty"),
    ],
)
def test_refused_predictions(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / "a.json")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
def test_other_formats(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text("x")
    with pytest.raises(ValueError, match="questions with answers are read from SQuAD's .json, .jsonl and .parquet"):
        read_squad(tmp_path / f"a{ending}")


ANSWER = {"text": "10th century", "answer_start": 59}


def flat(**changes):
    return dict(id="a", question="When?", context=CONTEXT, answers=[ANSWER]) | changes


@pytest.mark.parametrize(
    ("start", "text", "wanted"),
    [
        (59, "10th century", (59, "10th century")),
        ("59", "10th century", (59, "10th century")),  # a string, as in several sets of other languages
        (59.0, "10th century", (59, "10th century")),
        (56, "10th century", (59, "10th century")),
        (-1, "10th century", (59, "10th century")),
        (None, "10th century", (59, "10th century")),
        (10**9, "10th century", (59, "10th century")),
        (59, " 10th century\n", (59, "10th century")),
        (1, "Norman", (4, "Norman")),  # at 4, 13 and 91: the nearest
        (12, "Norman", (13, "Norman")),
        (40, "Norman", (13, "Norman")),
        (60, "Norman", (91, "Norman")),
        (59, "9th century", (-1, "9th century")),
    ],
)
def test_an_answer_is_looked_for_near_its_start(tmp_path, start, text, wanted):
    whole = {
        "data": [{"paragraphs": [{"context": CONTEXT, "qas": [flat(answers=[dict(text=text, answer_start=start)])]}]}]
    }
    path = written(tmp_path / "a.json", whole)
    found = read_dataset(path, "qa", max_bad_lines=0)
    assert [q.answers for q in found.examples] == [(wanted,)] and not found.notes


def test_what_cannot_be_learned_from_is_left_out_of_training_alone(tmp_path):
    qas = [
        flat(id=1),
        flat(id=2, answers=[dict(text="9th century", answer_start=3)]),
        flat(id=3, answers=[dict(text="9th century", answer_start=3), dict(text="Norman", answer_start=0)]),
        flat(id=4, is_impossible=True, answers=[dict(text="", answer_start=-1)]),
    ]
    path = written(tmp_path / "a.json", qas)
    found = read_dataset(path, "qa")
    assert (found.name, [q.id for q in found.examples], found.notes) == ("squad2", ["1", "2", "3", "4"], ())
    assert found.examples[1].answers == ((-1, "9th century"),) and not found.examples[1].impossible
    assert found.examples[3].answers == () and found.examples[3].impossible
    assert (
        squad_scores({"1": "10th century", "2": "9th century", "3": "norman", "4": ""}, found.examples, "squad2")[
            "exact"
        ]
        == 1
    )
    found = read_dataset(path, "qa", training=True)
    assert [q.id for q in found.examples] == ["1", "3", "4"]
    assert found.examples[1].answers == ((4, "Norman"),)
    assert found.notes == (
        f"{path}: took 1 answer from the nearest place with its text, not answer_start",
        f"{path}: left out 1 question whose answers stand nowhere in the context, such as 2",
    )


def test_other_shapes(tmp_path):
    """Articles, paragraphs or questions in a list, and rows of .jsonl and .parquet as Hugging Face writes them."""
    import pyarrow
    import pyarrow.parquet

    columns = flat(id="a", answers={"text": ["10th century"], "answer_start": [59]}, title="Normans")
    nothing = flat(id="b", answers={"text": [], "answer_start": []}, title="Normans")
    wanted = [Question("a", "When?", CONTEXT, ((59, "10th century"),)), Question("b", "When?", CONTEXT, (), True)]
    article = {"title": "", "paragraphs": [{"context": CONTEXT, "qas": [flat(), flat(id="b", answers=[])]}]}
    for number, whole in enumerate([[article], article["paragraphs"], [columns, nothing], article]):
        assert read_squad(written(tmp_path / f"{number}.json", whole)) == ("squad2", wanted)
    for number, rows in enumerate([[article], article["paragraphs"], [columns, nothing]]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        assert read_squad(path) == ("squad2", wanted)
        assert [q.id for q in read_squad(path, labelled=False)[1]] == ["a", "b"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([columns, nothing]), tmp_path / "a.parquet")
    assert read_squad(tmp_path / "a.parquet") == ("squad2", wanted)
    path = written(tmp_path / "c.json", [{k: v for k, v in flat().items() if k != "id"}, flat(id=7)])
    assert [q.id for q in read_squad(path)[1]] == ["0", "7"] and read_squad(path)[0] == "squad1"


def test_malformed_questions_are_left_out_and_told(tmp_path):
    whole = copy.deepcopy(V2)
    first(whole).pop("question")
    whole["data"][0]["paragraphs"].append({"context": " ", "qas": []})
    path = written(tmp_path / "a.json", whole)
    for labelled in (True, False):
        found = read_dataset(path, "qa", labelled=labelled)
        assert [q.id for q in found.examples] == list("bcdef")
        assert found.notes == (
            f"{path}: left out 2 malformed questions (data[0], paragraphs[0], qas[0]; data[0], paragraphs[1]), the "
            f"first of which: {path}, data[0], paragraphs[0], qas[0] has no 'question' (found: ['answers', 'id', "
            "'is_impossible']); SQuAD's files are data, paragraphs, qas, answers",
        )
    with pytest.raises(ValueError, match="has more than 1 malformed question, the first of which: .*--max-bad-lines"):
        read_dataset(path, "qa", max_bad_lines=1)


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    """A single read(n) asks the system for n bytes of memory, a gigabyte, however small the file is."""
    path, asked = tmp_path / "a.json", []
    path.write_bytes(b"[" + b" " * (3 << 20) + b"1]")

    class Stream(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(files, "opened", lambda path: contextlib.nullcontext(Stream(path.read_bytes())))
    assert files.read_json(path) == [1]
    assert len(asked) >= 4 and set(asked) == {1 << 20}
    monkeypatch.setattr(files, "LARGEST_JSON", 2 << 20)
    with pytest.raises(ValueError, match=r"a\.json is larger than 0 GB, unpacked, and would be read whole"):
        files.read_json(path)
