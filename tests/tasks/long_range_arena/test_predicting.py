"""A ListOps model answers expressions as they are written."""

import json

import numpy as np
import pytest

from diffmix.cli import predict
from diffmix.cli.main import main
from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples
from diffmix.tasks.long_range_arena.expressions import parse
from diffmix.training.prediction import load_classifier
from diffmix.training.recipe import load_recipe
from diffmix.training.trainer import train

KEYS = (
    "max_steps=2 hidden_size=8 intermediate_size=8 num_hidden_layers=2 neighbor_offsets=[-1,0,1] max_length=20 extra_train= "
    "dtype=fp32"
)


@pytest.fixture
def run(small, tmp_path):
    train(load_recipe("listops_short", KEYS.split()), output=tmp_path / "run", notice=lambda _: None)
    return tmp_path / "run"


def test_expressions_are_read_as_they_are_written(run, capsys, monkeypatch):
    expression = "[MAX 2 9 [MIN 4 7 ] 0 ]"
    assert main(["predict", str(run), expression, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    classifier = load_classifier(run)
    ids = parse(expression)[None].astype(np.int64)
    expected = classifier.probabilities(Examples(np.zeros(1, dtype=np.int64), input_ids=ids))[0]
    assert told["probabilities"] == pytest.approx(dict(zip("0123456789", expected, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[MAX 2", "]"), ("two", "is no symbol"), ("[MAX " + "1 " * 19 + "]", "21 symbols: this model reads 20 at most")],
)
def test_what_is_no_expression_is_refused_in_one_line(run, capsys, text, words):
    assert main(["predict", str(run), text]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_row_of_a_file_is_named(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 2)
    for text, words in (("[MAX 2 x ]", "'x' is no symbol"), ("[MAX " + "1 " * 19 + "]", "expression of 21 symbols")):
        (tmp_path / "rows.csv").write_text(f"text\n[MAX 2 9 ]\n[MIN 4 ]\n[SM 1 ]\n{text}\n")
        assert main(["predict", str(run), "--input", str(tmp_path / "rows.csv")]) == 2
        assert f"row 4: {words}" in capsys.readouterr().err


def test_other_input_is_refused_without_a_word_of_pixels_it_would_read(run, capsys):
    pairs = Examples(np.zeros(1, dtype=np.int64), texts=["[MAX 2 9 ]"], pairs=["[MIN 4 ]"])
    with pytest.raises(RequestError, match=r"^this model reads ListOps expressions but was given pairs of texts: "):
        load_classifier(run).probabilities(pairs)
    assert main(["evaluate", str(run), "--task", "digits"]) == 2  # ten classes of the same names
    assert "reads ids below 16 but was given 17: " in capsys.readouterr().err
