import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from diffmix.report import figures
from diffmix.report.drawing import to_files, to_svg
from diffmix.report.text import columns, short_count, short_size, shown


def texts(svg):
    """What the figure's text elements say."""
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_figure_leaves_no_trace_in_matplotlib():
    before = dict(matplotlib.rcParams)
    to_svg(figures.confusion_figure(np.eye(3, dtype=int), ["a", "b", "c"]), "label")
    assert dict(matplotlib.rcParams) == before
    import sys

    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_curves_overlay_seeds_and_leave_out_what_a_record_lacks():
    history = [{"step": 1, "train/loss": 1.0}, {"step": 2, "validation/loss": 0.5, "validation/accuracy": float("nan")}]
    figure = figures.training_curves([history, history])
    loss, accuracy = figure.axes
    assert [line.get_xdata().tolist() for line in loss.lines] == [[1], [1], [2], [2]]
    assert len(accuracy.lines) == 0
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "validation"]


def perplexities(*values):
    (axes,) = figures.training_curves(
        [[{"step": step, "validation/perplexity": value} for step, value in enumerate(values)]], "perplexity"
    ).axes[1:]
    return axes


def test_perplexity_takes_the_second_panel_and_a_logarithm_where_it_falls_far():
    far, near = perplexities(900.0, 60.0), perplexities(70.0, 60.0)
    assert far.get_title() == "Validation perplexity"
    assert far.lines[0].get_ydata().tolist() == [900.0, 60.0]
    assert (far.get_yscale(), near.get_yscale()) == ("log", "linear")


def test_confusion_cells_are_shares_of_their_row_and_mistakes_have_another_colour():
    figure = figures.confusion_figure([[3, 1], [0, 4]], ["yes", "no"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["75", "25", "100"]
    colours = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert {"yes", "no", "predicted", "label"} <= set(texts(to_svg(figure, "label")))


@pytest.mark.parametrize("classes", [2, 12, 40, 60, 61, 150])
def test_confusion_of_many_classes_keeps_its_names_legible(classes):
    names = [f"class {i}" for i in range(classes)]
    figure = figures.confusion_figure(np.eye(classes, dtype=int), names)
    (axes,) = figure.axes
    figure.canvas.draw()
    labels = axes.get_yticklabels()
    assert len(labels) == (classes if classes <= 60 else 0)
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 >= lower.y0 + 0.9 * lower.height for upper, lower in itertools.pairwise(boxes))


def test_confusion_of_very_many_classes_stays_a_picture_that_fits_into_memory():
    figure = figures.confusion_figure(np.eye(1000, dtype=int), [f"class {i}" for i in range(1000)])
    assert max(figure.get_size_inches()) < 40


def test_names_are_taken_as_they_are():
    svg = to_svg(figures.confusion_figure(np.eye(3, dtype=int), ["$x^2$", "日本語", "<b> & _c"]), "<label> & more")
    assert {"$x^2$", "日本語", "<b> & _c"} <= set(texts(svg))
    assert ElementTree.fromstring(svg).get("aria-label") == "<label> & more"


def test_a_row_without_examples_stays_empty():
    (axes,) = figures.confusion_figure([[0, 0], [0, 2]], ["a", "b"]).axes
    assert len(axes.patches) == 1


def bins(count, confidence=0.95, accuracy=0.9):
    return [
        {"low": 0.0, "high": 0.5, "confidence": None, "accuracy": None, "count": 0},
        {"low": 0.5, "high": 1.0, "confidence": confidence, "accuracy": accuracy, "count": count},
    ]


def interval_height(figure):
    (segments,) = [bar.get_segments()[0] for bar in figure.axes[0].collections]
    return float(segments[1, 1] - segments[0, 1])


def test_reliability_intervals_narrow_with_examples_but_not_with_repeats_of_them():
    assert interval_height(figures.reliability_diagram(bins(400))) < interval_height(
        figures.reliability_diagram(bins(100))
    )
    assert interval_height(figures.reliability_diagram(bins(300), repeats=3)) == pytest.approx(
        interval_height(figures.reliability_diagram(bins(100)))
    )


def test_reliability_says_what_was_predicted():
    axes, histogram = figures.reliability_diagram(bins(10), of="tokens").axes
    assert histogram.get_ylabel() == "tokens"
    assert "token" in histogram.get_xlabel()
    assert axes.get_ylabel() == "accuracy"


def test_reliability_of_a_perfect_bin_draws_without_error():
    to_svg(figures.reliability_diagram(bins(1, 1.0, 1.0)), "label")


def test_trade_off_marks_runs_by_number_and_leaves_unknown_costs_out():
    points = [
        figures.TradeOffPoint(0.9, 0.88, 0.92, 100_000.0, 1.5e8),
        figures.TradeOffPoint(0.91, None, None, 9_000.0, None),
        figures.TradeOffPoint(0.8, 0.7, 0.9, None, 2e9),
    ]
    speed, memory = figures.trade_off(points).axes
    assert [text.get_text() for text in speed.texts] == ["1", "2"]
    assert [text.get_text() for text in memory.texts] == ["1", "3"]
    assert speed.get_xscale() == memory.get_xscale() == "log"
    by_number, _ = figures.trade_off(points[:2], "bits per byte", numbers=[3, 5]).axes
    assert [text.get_text() for text in by_number.texts] == ["3", "5"]
    assert "bits per byte" in by_number.get_ylabel()
    near = [point._replace(tokens_per_second=100.0 + i, peak_memory_bytes=None) for i, point in enumerate(points)]
    speed, memory = figures.trade_off(near).axes
    assert speed.get_xscale() == "linear"
    assert [text.get_text() for text in memory.texts] == ["not recorded"]


def test_svg_colours_are_variables_with_a_fallback():
    svg = to_svg(figures.reliability_diagram(bins(10)), "label")
    assert "var(--series-1, #0b6bcb)" in svg
    assert not re.search(r": ?#", svg)
    assert "<metadata" not in svg
    assert "<style" not in svg


def test_a_figure_is_had_as_a_picture_and_as_a_drawing_that_stand_alone():
    files = to_files(figures.reliability_diagram(bins(10)), "name")
    assert sorted(files) == ["name.png", "name.svg"]
    picture = matplotlib.image.imread(io.BytesIO(files["name.png"]))
    assert picture.shape[:2] == (880, 960)
    assert np.allclose(picture[0, 0, :3], 254 / 255, atol=1e-3)  # the light page's ground, not transparent
    drawing = files["name.svg"].decode()
    assert "var(" not in drawing
    assert "accuracy" in texts(drawing)
    assert files == to_files(figures.reliability_diagram(bins(10)), "name")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (523, "523"), (999.7, "1 k"), (1250, "1.25 k"), (66_400_000, "66.4 M"), (2e9, "2 G")]
)
def test_short_count(value, text):
    assert short_count(value) == text


def test_short_size_and_shown_and_columns():
    assert short_size(673e6) == "673 MB"
    assert short_size(12) == "12 B"
    assert shown(" a\n b\x00 ", 10) == "a b\N{REPLACEMENT CHARACTER}"
    assert shown("abcdef", 4) == "abc…"
    assert columns("ab日") == 4
