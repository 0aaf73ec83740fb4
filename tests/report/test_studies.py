import json

import pytest
from page_reader import read
from run_folders import write_run

from diffmix.errors import RequestError
from diffmix.experiments.study_file import load_study
from diffmix.experiments.study_summary import study_result
from diffmix.report.page import write_report
from diffmix.report.studies import depth_rows

GRID = """
recipe: python_docs
grid:
  num_hidden_layers: [8, 4]
  attention:
    softmax: {mixer: softmax}
    "<b>heat": {mixer: heat_kernel}
  seed: [0, 1, 2]
compare: {axis: attention, baseline: softmax}
metrics: [test/nll, test/ece, test/ece_noise_floor, train/peak_memory_bytes]
"""


@pytest.fixture
def result(tmp_path):
    """What `diffmix study` writes of six layers-by-attention means, one cell still missing."""
    file = tmp_path / "by_depth.yaml"
    file.write_text(GRID)
    study = load_study(file)
    finished = {}
    for cell in study.cells:
        layers, seed = int(cell.values["num_hidden_layers"]), int(cell.values["seed"])
        better = 0.5 * (cell.values["attention"] != "softmax")
        metrics = {"test/nll": 4.0 - layers / 8 - better + seed / 100, "test/ece": 0.02, "train/peak_memory_bytes": 5e8}
        finished[cell.label] = {"metrics": {**metrics, "test/ece_noise_floor": 0.004}, "history": [], "environment": {}}
    finished.pop(next(iter(finished)))
    return study_result(study, finished)


@pytest.fixture
def file(result, tmp_path):
    path = tmp_path / "study-by_depth.json"
    path.write_text(json.dumps(result))
    return path


def test_rows_by_depth_are_the_means_of_each_variant(result):
    rows = depth_rows(result, "test/nll")
    assert [(row.variant, row.depth, row.mean) for row in rows] == [
        ("softmax", 8, pytest.approx(3.015)),  # of two seeds: the first is missing
        ("<b>heat", 8, pytest.approx(2.51)),
        ("softmax", 4, pytest.approx(3.51)),
        ("<b>heat", 4, pytest.approx(3.01)),
    ]
    low, high = rows[3].low, rows[3].high
    assert low is not None
    assert high is not None
    assert low < rows[3].mean < high
    assert depth_rows(result, "test/brier") == []


def test_a_study_is_a_section_with_its_figure_means_and_differences(file, tmp_path):
    output, figures = tmp_path / "report.html", tmp_path / "figures"
    page = read(write_report([file, write_run(tmp_path / "news")], output, figures=figures))
    assert "Study by_depth" in page.shown
    assert page.shown.index("Study by_depth") < page.shown.index("Results")
    assert {"study-by_depth-by-depth.png", "study-by_depth-by-depth.svg"} <= {path.name for path in figures.iterdir()}
    for text in (
        "3.0100",
        "500 MB",
        "1 of 12 cells are missing",
        "Differences to attention=softmax",
        "−0.5000",
        "better",
    ):
        assert text in page.shown
    assert "<b>heat" in page.shown
    assert "b" not in page.tags
    assert "1 study · 1 run" in page.shown


def test_a_study_without_depth_is_tables_only(result, tmp_path):
    for row in (*result["means"], *result["differences"]):
        row["axes"]["width"] = row["axes"].pop("num_hidden_layers")
    result["axes"] = {"width": ["8", "4"], "attention": ["softmax", "<b>heat"]}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(result))
    page = read(write_report([path], tmp_path / "report.html"))
    assert "svg" not in page.tags
    assert "3.0100" in page.shown


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"study": "a", "means": [{}], "differences": [], "axes": {"b": []}}']
)
def test_another_json_is_refused_with_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(
        RequestError, match=r"result\.json.*give the study-NAME\.json that `diffmix study` wrote"
    ) as caught:
        write_report([path], tmp_path / "report.html")
    assert "\n" not in str(caught.value)


def test_a_missing_study_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        write_report([tmp_path / "study-none.json"], tmp_path / "report.html")
