import numpy as np
import pytest
from run_folders import head

from diffmix.report.drawing import COLOURS
from diffmix.report.language_figures import DepthPanel, DepthRow, by_depth, learned_times


def dots(axes):
    """[n, 2] of all markers."""
    return np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() not in ("None", None)])


def test_times_stand_in_their_layer_head_by_head_with_their_extent():
    (axes,) = learned_times([[[head(0.3, 2), head(0.4)], [head(0.5), head(0.2)]]], start=0.28).axes
    x, y = dots(axes).T
    assert y.tolist() == [0.3, 0.4, 0.5, 0.2]
    assert np.rint(x).tolist() == [0, 0, 1, 1]
    assert (np.diff(x) > 0).all()
    bars = np.array(axes.collections[0].get_segments())
    assert bars[:, :, 1].tolist() == [[0.15, 0.6], [0.4, 0.4], [0.5, 0.5], [0.2, 0.2]]
    assert "start 0.28" in [text.get_text() for text in axes.texts]
    assert axes.get_yscale() == "log"
    assert "2 heads" in axes.get_xlabel()


def test_seeds_share_a_layer_and_overlap_nowhere():
    seeds = [[[head(0.3)] * 4] * 6 for _ in range(3)]
    figure = learned_times(seeds)
    (axes,) = figure.axes
    x = np.sort(dots(axes)[:, 0])
    assert len(x) == len(np.unique(x.round(6))) == 3 * 4 * 6
    assert np.bincount(np.rint(x).astype(int)).tolist() == [12] * 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1", "seed 2"]
    assert not learned_times(seeds[:1]).legends


def test_layers_with_different_numbers_of_heads_are_drawn():
    (axes,) = learned_times([[[head(0.3)], [head(0.4), head(0.5)]]]).axes
    assert np.rint(dots(axes)[:, 0]).tolist() == [0, 1, 1]


@pytest.fixture
def panels():
    variants = ("softmax", "heat_fixed", "heat_adaptive")
    ece = [
        DepthRow(variant, depth, 0.02 + 0.01 * number, 0.015 + 0.01 * number, 0.025 + 0.01 * number)
        for number, variant in enumerate(variants)
        for depth in (12, 4, 8)
    ]
    floor = [DepthRow(variant, depth, 0.002, None, None) for variant in variants for depth in (4, 8, 12)]
    nll = [DepthRow("heat_fixed", 4, 4.1, None, None), DepthRow("softmax", 4, 4.2, 4.0, 4.4)]
    return [DepthPanel("NLL, nats", nll), DepthPanel("ECE", ece, floor)]


def test_each_variant_is_a_line_by_depth_with_intervals_and_its_floor(panels):
    figure = by_depth(panels)
    nll, ece = figure.axes
    assert [label.get_text() for label in ece.get_xticklabels()] == ["4", "8", "12"]
    lines = {line.get_label(): line for line in ece.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["heat_fixed", "softmax", "heat_adaptive"]
    assert lines["softmax"].get_ydata().tolist() == [0.02] * 3
    intervals = [line.get_ydata() for line in ece.lines if len(line.get_ydata()) == 2]
    assert len(intervals) == 9
    assert sorted({tuple(np.round(y, 3)) for y in intervals}) == [(0.015, 0.025), (0.025, 0.035), (0.035, 0.045)]
    (floors,) = ece.collections
    assert {round(float(y), 4) for segment in floors.get_segments() for y in segment[:, 1]} == {0.002}
    assert ece.get_ylim()[0] == 0
    assert len([line for line in nll.lines if len(line.get_ydata()) == 2]) == 1  # one row has no interval
    assert nll.get_ylim()[0] > 3
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["heat_fixed", "softmax", "heat_adaptive", "noise floor"]


def test_a_variant_keeps_its_colour_and_marker_and_its_side_in_every_panel(panels):
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines if line.get_label()[0] != "_"}
        for axes in by_depth(panels).axes
    ]
    assert looks[0]["softmax"] == looks[1]["softmax"]
    assert looks[0]["heat_fixed"] == looks[1]["heat_fixed"]
    colours, markers = zip(*looks[1].values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == 3
    assert set(colours) <= set(COLOURS.values())
    places = [line.get_xdata()[0] for line in by_depth(panels).axes[1].lines if line.get_label()[0] != "_"]
    assert places == sorted(places)
    assert len(set(places)) == 3
