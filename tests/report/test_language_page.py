import json
import re

import pytest
from page_reader import read
from run_folders import head, write_language_run, write_run, write_seeds

from diffmix.errors import RequestError
from diffmix.report.page import write_report
from diffmix.report.runs import load_run

TIMES = {f"model.layers.{layer}.mixer.time": [head(0.3, 1.5), head(0.4)] for layer in range(4)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_language_run(tmp_path_factory.mktemp("runs") / "heat", mixer="heat_kernel", times=TIMES)


def test_a_language_model_shows_its_perplexities_calibration_and_times(run, tmp_path):
    page = read(write_report([run], tmp_path / "report.html"))
    metrics = json.loads((run / "metrics.json").read_text())
    for key, form in (
        ("perplexity", ".2f"),
        ("bits_per_byte", ".3f"),
        ("nll", ".4f"),
        ("brier", ".4f"),
        ("ece", ".4f"),
    ):
        value, low, high = (format(metrics[f"test/{key}{end}"], form) for end in ("", "_low", "_high"))
        assert value in page.shown
        assert f"{low} – {high}" in page.shown
    assert f"floor {metrics['test/ece_noise_floor']:.4f}" in page.shown
    assert f"std {metrics['test/entropy_std']:.3f}" in page.shown
    for text in (
        "per word",
        "4,000 test tokens",
        "9,000 train windows",
        "1.1 M",
        "310 MB",
        "12.6 min",
        "21 k tokens/s",
        "heat_kernel, fixed time",
        "over the documents",
    ):
        assert text in page.shown
    assert "Best validation perplexity" in page.shown
    assert "Mean times of heads from 0.3 to 0.4; 0.28 at the start" in page.shown
    assert page.tags.count("svg") == 3  # curves, reliability diagram, times
    for text in ("onfusion", "ccuracy of", "Macro F1", "Trade-off"):
        assert text not in page.shown


def test_tokenizers_are_compared_by_word_and_byte_only(run, tmp_path):
    other = write_language_run(tmp_path / "softmax", vocabulary=20, n=5000)
    source = write_report([run, other], tmp_path / "report.html").read_text(encoding="utf-8")
    best = re.findall(r'<td class="number best">([^<]*)', source)
    each = [json.loads((folder / "metrics.json").read_text()) for folder in (run, other)]
    assert best == [
        f"{min(metrics['test/word_perplexity'] for metrics in each):,.0f}",
        f"{min(metrics['test/bits_per_byte'] for metrics in each):.3f}",
    ]
    assert "bits per byte against training speed" in source.lower()


def test_classifiers_and_language_models_have_a_table_each(run, tmp_path):
    runs = [run, write_run(tmp_path / "news"), write_run(tmp_path / "other", seed=1)]
    page = read(write_report(runs, tmp_path / "report.html", figures=tmp_path / "figures"))
    assert page.shown.index("Classifiers") < page.shown.index("Language models")
    assert page.tags.count("h2") == 2 + 1 + 3  # tables, the classifiers' trade-off, runs
    assert {"run-1", "run-2", "run-3"} <= set(page.ids)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    figures = ("trade-off-accuracy", "1-heat-curves", "1-heat-reliability", "1-heat-times", "2-news-confusion")
    assert {f"{figure}.{ending}" for figure in figures for ending in ("png", "svg")} <= names
    assert len(names) == 2 * page.tags.count("svg")


def test_seeds_of_a_language_model_are_one_row_and_their_times_one_figure(tmp_path):
    folder = write_seeds(tmp_path / "two", count=2, write=write_language_run, mixer="heat_kernel", times=TIMES)
    run = load_run(folder)
    assert run.is_language_model
    assert len(run.times) == 2
    page = read(write_report([folder], tmp_path / "report.html"))
    summary = json.loads((folder / "metrics.json").read_text())
    assert f"{summary['test/perplexity']:.2f}" in page.shown
    assert "seed 1" in page.shown


def test_a_run_without_test_split_is_judged_by_validation(tmp_path):
    run = write_language_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if not k.startswith("test/")}))
    (run / "evaluation.json").unlink()
    page = read(write_report([run], tmp_path / "report.html"))
    assert "12.18" in page.shown  # e ** 2.5
    assert "No reliability diagram" in page.shown


def test_the_start_time_follows_the_recipe_or_the_depth_law(tmp_path):
    run = write_language_run(tmp_path / "run", times=TIMES | {f"layer {extra}": [head(0.3)] for extra in range(4)})
    assert load_run(run).start_time == pytest.approx(0.28 * 0.5**0.5)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + "heat_time: 0.5\n")
    assert load_run(run).start_time == 0.5
    (run / "times.json").unlink()
    assert load_run(run).start_time is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"times\.json: holds a list"),
        ('{"layer": [{"mean": 1}]}', r"times\.json: KeyError"),
        ('{"layer": 3}', r"times\.json: TypeError"),
        (json.dumps({"layer": [head(-1.0)]}), r"times\.json: holds a time that is not above 0"),
        ("{}", r"times\.json: holds a time that is not above 0 and finite, or none at all"),
    ],
)
def test_broken_times_are_refused_with_one_line(tmp_path, content, message):
    run = write_language_run(tmp_path / "run")
    (run / "times.json").write_text(content)
    with pytest.raises(RequestError, match=message) as caught:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(caught.value)


def test_figures_that_exist_are_kept_unless_asked(run, tmp_path):
    folder, output = tmp_path / "figures", tmp_path / "report.html"
    folder.mkdir()
    precious = folder / "1-heat-times.png"
    precious.write_text("precious")
    with pytest.raises(RequestError, match=r"1-heat-times\.png exists; .*--force"):
        write_report([run], output, figures=folder)
    assert precious.read_text() == "precious"
    assert not output.exists()
    assert [path.name for path in folder.iterdir()] == ["1-heat-times.png"]
    write_report([run], output, figures=folder, overwrite=True)
    assert precious.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match="is a file; give a folder for the figures"):
        write_report([run], output, figures=output, overwrite=True)


def test_a_perplexity_that_is_no_number_is_not_the_best(tmp_path):
    run = write_language_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    diverged = json.dumps({**json.loads(lines[0]), "step": 50, "validation/perplexity": float("nan")})
    (run / "metrics.jsonl").write_text("\n".join([diverged, *lines]) + "\n")
    page = read(write_report([run], tmp_path / "report.html"))
    assert "nan" not in page.shown.lower()
