import json
import re

import numpy as np
import pytest
from page_reader import read
from run_folders import write_run, write_seeds

from diffmix.errors import RequestError, RunError
from diffmix.report.page import Prediction, write_report
from diffmix.report.runs import load_run
from diffmix.training.run_folder import write_evaluation

HOSTILE = '</td><script>alert("x")</script>&amp; $x^2$ _under'


def test_one_run_shows_its_numbers_its_mistakes_and_how_it_was_made(run, tmp_path):
    page = read(write_report([run], tmp_path / "report.html"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"{100 * metrics['test/accuracy']:.2f} %" in page.shown
    assert f"{100 * metrics['test/accuracy_low']:.2f} – {100 * metrics['test/accuracy_high']:.2f}" in page.shown
    assert f"{metrics['test/nll']:.4f}" in page.shown
    assert f"floor {metrics['test/ece_noise_floor']:.4f}" in page.shown
    for text in ("2.31 M", "160 MB", "110 k", "212 s", "18,066 train rows", "600 test rows", "Sci/Tech", "2.13.0"):
        assert text in page.shown
    assert "learning_rate: 0.001" in page.shown
    assert page.tags.count("svg") == 3  # curves, confusion matrix, reliability diagram
    assert "Trade-off" not in page.shown


def test_the_page_needs_no_network_and_no_script_and_follows_the_colour_scheme(run, tmp_path):
    path = write_report([run, write_run(tmp_path / "other", seed=1)], tmp_path / "report.html")
    page, source = read(path), path.read_text(encoding="utf-8")
    assert page.reaches == []
    assert not re.search(r"@import|url\((?!#)", source)
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in source
    # Every colour of the figures is a variable: one that is not would stay dark on dark.
    assert not re.search(r"(fill|stroke): ?#", source)


def test_the_page_is_sound_html_that_can_be_read_without_seeing(run, tmp_path):
    path = write_report([run, write_run(tmp_path / "other", seed=1)], tmp_path / "report.html")
    source, page = path.read_text(encoding="utf-8"), read(path)  # Reader asserts that the tags nest
    assert '<html lang="en">' in source
    assert source.count("<svg ") == source.count('role="img" aria-label="')
    assert len([name for name in page.ids if name.startswith("run-")]) == len(set(page.ids) & {"run-1", "run-2"}) == 2
    assert page.tags.count("h1") == 1


def test_runs_are_compared_in_a_table_and_a_trade_off_and_the_best_is_marked(tmp_path):
    weak = write_run(tmp_path / "weak", skill=1.2)
    strong = write_run(tmp_path / "strong", skill=3.0, mixer="softmax", peak_memory=2_100_000_000)
    path = write_report([weak, strong], tmp_path / "report.html", title="Which one?")
    source, page = path.read_text(encoding="utf-8"), read(path)
    best = re.findall(r'<td class="number best">([^<]*)', source)
    accuracy = json.loads((strong / "metrics.json").read_text())["test/accuracy"]
    assert f"{100 * accuracy:.2f} %" in best
    assert "160 MB" in best
    assert "2.1 GB" not in best
    assert "Which one?" in page.shown
    assert "Trade-off" in page.shown
    assert "diffmix (softmax)" in page.shown


def test_runs_on_different_examples_have_no_best(tmp_path):
    runs = [write_run(tmp_path / "small", n=200), write_run(tmp_path / "large", n=300)]
    assert 'class="number best"' not in write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")


def test_seeds_are_one_row_with_their_t_interval_and_pooled_figures(tmp_path):
    folder = write_seeds(tmp_path / "three", count=3)
    run = load_run(folder)
    assert run.seeds == len(run.histories) == 3
    assert run.evaluation is not None
    assert run.evaluation.confusion.sum() == 3 * 600
    assert sum(row["count"] for row in run.evaluation.reliability) == 3 * 600
    right = sum(row["accuracy"] * row["count"] for row in run.evaluation.reliability if row["count"])
    assert right == pytest.approx(run.evaluation.confusion.trace())
    page = read(write_report([folder], tmp_path / "report.html"))
    summary = json.loads((folder / "metrics.json").read_text())
    assert f"{100 * summary['test/accuracy']:.2f} %" in page.shown
    assert "3 seeds" in page.shown
    assert "t-interval over the seeds" in page.shown


def test_foreign_text_is_shown_and_never_obeyed(tmp_path):
    run = write_run(tmp_path / "run & <b>", labels=(HOSTILE, "日本語", "a\ud800\x00b", "_hidden"), skill=0.5)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text() + 'text_column: "<img src=x onerror=alert(1)>"\n')
    predictions = [Prediction("<script>steal()</script>", HOSTILE, 0.75), ("plain", "_hidden", 1.0)]
    path = write_report([run, run], tmp_path / "report.html", predictions=predictions, title="<i>title</i>")
    page = read(path)
    assert not {"script", "img", "b", "i"} & set(page.tags)
    assert page.shown.count(HOSTILE) >= 2
    assert "<script>steal()</script>" in page.shown
    assert "<i>title</i>" in page.shown
    assert "run & <b>" in page.shown
    assert "日本語" in page.shown
    assert "75.0 %" in page.shown


def test_what_a_run_did_not_record_is_said_to_be_missing(run, tmp_path):
    for name in ("metrics.jsonl", "evaluation.json", "environment.json"):
        (run / name).unlink()
    (run / "metrics.json").write_text('{"validation/accuracy": 0.5, "parameters": null, "train/seconds": NaN}')
    page = read(write_report([run, run], tmp_path / "report.html"))
    assert "50.00 %" in page.shown
    assert "validation" in page.shown
    assert "fewer than two evaluations" in page.shown
    assert "no evaluation.json" in page.shown
    assert "Parameters" not in page.shown


def test_many_classes_have_no_confusion_matrix(run, tmp_path):
    evaluation = json.loads((run / "evaluation.json").read_text())
    write_evaluation(run, 5, evaluation["reliability"], [str(k) for k in range(201)], np.ones((201, 201), dtype=int))
    assert (run / "evaluation.json").stat().st_size < 10_000
    page = read(write_report([run], tmp_path / "report.html"))
    assert "No confusion matrix: the run recorded none of its 201 labels" in page.shown
    assert page.tags.count("svg") == 2  # curves, reliability diagram


def test_a_step_evaluated_again_after_a_resume_counts_once(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "validation/accuracy": 0.125}\n')
    (history,) = load_run(run).histories
    assert [record["step"] for record in history] == list(range(100, 2001, 100))
    assert history[0] == {"step": 100, "validation/accuracy": 0.125}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", None, r"has no metrics\.json: the run has not finished"),
        ("metrics.json", "{", r"metrics\.json: not JSON"),
        ("metrics.json", "[1]", r"metrics\.json: holds a list"),
        ("metrics.json", b"\xff\xfe", r"metrics\.json: not UTF-8"),
        ("metrics.json", "[" * 100_000, r"metrics\.json: not JSON"),
        ("recipe.yaml", None, r"has no recipe\.yaml"),
        ("recipe.yaml", "a: [", r"recipe\.yaml: not YAML"),
        ("recipe.yaml", "words", r"recipe\.yaml: holds no recipe keys"),
        ("metrics.jsonl", '{"step": 1}\n{"ste', r"metrics\.jsonl line 2: not JSON"),
        ("metrics.jsonl", '{"loss": 1}\n', r"metrics\.jsonl line 1: has no number under step"),
        ("evaluation.json", "{}", r"evaluation\.json: KeyError 'labels'"),
        (
            "evaluation.json",
            '{"labels": ["a"], "confusion": [[1, 2]], "reliability": [], "split": "test", "n": 3}',
            r"evaluation\.json: confusion has shape \[1, 2\] for 1 labels",
        ),
        ("environment.json", "nothing", r"environment\.json: not JSON"),
    ],
)
def test_a_broken_run_is_refused_with_one_line_that_names_the_file(run, tmp_path, name, content, message):
    if content is None:
        (run / name).unlink()
    elif isinstance(content, bytes):
        (run / name).write_bytes(content)
    else:
        (run / name).write_text(content)
    with pytest.raises(RequestError, match=message) as caught:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_a_missing_run_are_refused(tmp_path):
    with pytest.raises(RequestError, match="runs is empty"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(RequestError, match="nowhere: no such run folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")


def test_nothing_is_overwritten_unless_asked(run, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("precious")
    with pytest.raises(RequestError, match=r"report\.html exists; .*--force"):
        write_report([run], output)
    assert output.read_text() == "precious"
    write_report([run], output, overwrite=True)
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ag_news", "report.html"]


def test_an_output_that_is_a_folder_or_cannot_be_written_is_refused(run, tmp_path):
    with pytest.raises(RequestError, match="is a folder; give the HTML file"):
        write_report([run], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write_report([run], tmp_path / "file" / "report.html")


def test_folders_on_the_way_to_the_output_are_made_and_the_page_is_the_same_each_time(run, tmp_path):
    first = write_report([run], tmp_path / "a" / "b" / "report.html")
    second = write_report([run], tmp_path / "c.html")
    assert first.read_bytes() == second.read_bytes()
