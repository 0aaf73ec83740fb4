import json

import numpy as np
import pytest

from diffmix.cli.main import main
from diffmix.experiments.spectrum_tables import distance_table, gap_table, map_table, reach_table
from diffmix.experiments.tables import make_table
from diffmix.patterns import SparsePattern
from diffmix.report.spectrum_figures import spectrum_figures
from small_runs import SMALL

QUICK = ["--window", "1,3", "--global_tokens", "0,2", "--random_links", "1", "--length", "24,40", "--hops", "1,5,400"]


@pytest.fixture(scope="module")
def sparse_run(names_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sparse"
    own = ["mixer=attention_diffusion", "diffusion_window=2", "diffusion_random_links=1", "epochs=1"]
    sets = [
        part
        for key in [*(key for key in SMALL if not key.startswith(("neighbor", "epochs"))), *own]
        for part in ("--set", key)
    ]
    assert main(["train", "text_file", "--data", str(names_csv), "--output", str(folder), *sets]) == 0
    return folder


def test_tokens_that_hear_themselves_alone_have_a_row_like_all_others(diffmix):
    alone = ["--window", "0", "--global_tokens", "0", "--random_links", "0", "--length", "24", "--hops", "1"]
    code, out, error = diffmix("spectrum", *alone)
    assert code == 0, error
    assert " never |" in out  # reach every pair


def test_patterns_end_to_end(diffmix, tmp_path):
    output, figures = tmp_path / "results" / "spectrum.json", tmp_path / "figures"
    code, out, error = diffmix("spectrum", *QUICK, "--output", output, "--figures", figures)
    assert code == 0, error
    result = json.loads(output.read_text())
    assert result["command"] == f"diffmix spectrum {' '.join(QUICK)}"
    assert {path.name for path in figures.iterdir()} == {
        f"spectrum-{name}.{ending}" for name in ("gap", "density", "map", "reach") for ending in ("png", "svg")
    }
    assert (figures / "spectrum-gap.png").read_bytes().startswith(b"\x89PNG")
    for table in (gap_table(result), reach_table(result), map_table(result)):
        assert table in out
    assert make_table("spectrum", output.parent) == gap_table(result)
    assert make_table("spectrum_map", output.parent) == map_table(result)

    assert len(result["graphs"]) == 2 * 2 * 2
    for graph in result["graphs"]:
        pattern = SparsePattern(graph["window"], graph["global_tokens"], graph["random_links"])
        dense = pattern.dense(graph["n"]).double().numpy()
        eigenvalues = np.sort(1 - np.linalg.eigvals(dense / dense.sum(1, keepdims=True)).real)
        assert (graph["gap"], graph["largest"]) == pytest.approx((eigenvalues[1], eigenvalues[-1]), abs=1e-8)
        assert graph["reached"][0] == pytest.approx(dense.mean())
        assert graph["reached"][-1] == 1.0
        assert graph["hops"] == len(graph["reached"])
        assert abs(graph["regular"]["degree"] - graph["mean_degree"]) <= 1
    for spectrum in result["spectra"]:
        assert sum(spectrum["counts"]) == sum(spectrum["regular_counts"]) == spectrum["n"] == 40
    first, last = result["maps"]
    assert (first["pattern"]["window"], last["pattern"]["window"]) == (1, 3)
    rows = last["rows"]
    assert [row["coefficients"] for row in rows] == ["ppr"] * 3 + ["heat"] * 2
    assert all(row["formula_error"] < 1e-9 for row in rows)
    assert rows[2]["limit_error"] < 1e-9 < rows[1]["limit_error"]
    assert all(row["distance"] <= row["bound"] + 1e-9 for row in rows[:3])
    assert all(row["limit_error"] < 1e-8 for row in rows[3:])  # e^{-tλ}

    code, _, error = diffmix("spectrum", *QUICK, "--output", output)
    assert code == 2
    assert "exists: give --force" in error
    code, _, error = diffmix("spectrum", *QUICK, "--figures", figures)
    assert code == 2
    assert "exists: give --force" in error


def test_causal_patterns(diffmix, tmp_path):
    output = tmp_path / "causal.json"
    code, out, error = diffmix("spectrum", *QUICK, "--causal", "--output", output)
    assert code == 0, error
    result = json.loads(output.read_text())
    assert "every earlier one" in out
    assert all(row["formula_error"] < 1e-9 for row in result["maps"][0]["rows"])
    first = result["graphs"][0]
    dense = SparsePattern(1, 0, 1, causal=True).dense(24).numpy()
    assert first["reached"][0] == pytest.approx(dense.sum() / (24 * 25 / 2))
    assert "regular" not in first
    density = spectrum_figures(result)["density"].axes[0]
    assert len(density.patches) == 1  # no random regular graph beside it


def test_a_trained_run(diffmix, sparse_run, tmp_path):
    output, figures = tmp_path / "spectrum-sparse.json", tmp_path / "figures"
    options = ["--hops", "1,3", "--alpha", "0.1,0.4", "--time", "1", "--limit", "5"]
    code, out, error = diffmix("spectrum", "--model", sparse_run, *options, "--output", output, "--figures", figures)
    assert code == 0, error
    result = json.loads(output.read_text())
    assert result["command"] == "diffmix spectrum --model sparse --alpha 0.1,0.4 --hops 1,3 --time 1 --limit 5"
    assert result["pattern"] == {"window": 2, "global_tokens": 1, "random_links": 1, "causal": False, "seed": 0}
    assert (result["rows"], len(result["tokens"]), result["split"]) == (5, 5, "validation")
    assert set(result["variants"]) == {"sparse", "uniform", "itself", "t=1, K=1", "t=1, K=3"} | {
        f"alpha={alpha}, K={hops}" for alpha in (0.1, 0.4) for hops in (1, 3)
    }
    assert np.shape(result["variants"]["sparse"]["frobenius"]) == (2, 4)
    assert str(tmp_path) not in output.read_text()
    assert {path.name for path in figures.iterdir()} == {"spectrum-distance.png", "spectrum-distance.svg"}
    assert distance_table(result) in out
    assert make_table("spectrum-sparse", tmp_path) == distance_table(result)
    code, out, error = diffmix("spectrum", "--model", sparse_run, "--window", "60", "--length", "9", "--limit", "2")
    assert code == 0, error
    assert "window 60" in out
    assert "sparse (K=1, alpha=0) |              0.000" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--window", "two"], "--window is 'two': give whole numbers"),
        (["--window", "-1"], "window is -1; give a whole number"),
        (["--random_links", "-3"], "random_links is -3"),
        (["--length", "1,40"], "length is 1; give 2 tokens or more"),
        (["--length", ""], "--length is ''"),
        (["--hops", "-1"], "hops is -1"),
        (["--hops", "1.5"], "--hops is '1.5': give whole numbers"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--alpha", "1.5"], "alpha is 1.5"),
        (["--time", "-1"], "time is -1"),
        (["--length", "100000", "--global_tokens", "5000"], "edges; give fewer than"),
        (["--task", "imdb"], "--task is for the rows of a model: give --model RUN"),
        (["--model", "nowhere"], "nowhere holds no trained model"),
        (["--model", "nowhere", "--window", "2,3"], "--window is 2,3: give one number with --model"),
        (["--model", "nowhere", "--causal"], "--causal and --seed"),
    ],
)
def test_wrong_requests_end_with_2_and_one_line(arguments, expected, diffmix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = diffmix("spectrum", *arguments, "--output", "spectrum.json")
    assert (code, out) == (2, "")
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hops", "-2"], "hops is -2"),
        (["--window", "-2"], "window is -2"),
        (["--task", "digits"], "reads text but was given pixels"),
    ],
)
def test_wrong_requests_of_a_model(arguments, expected, diffmix, sparse_run):
    code, _, error = diffmix("spectrum", "--model", sparse_run, *arguments)
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1


def test_a_run_is_recorded_as_it_was_named(diffmix, sparse_run, tmp_path, monkeypatch):
    monkeypatch.chdir(sparse_run.parent.parent)
    named = sparse_run.relative_to(sparse_run.parent.parent)
    output = tmp_path / "spectrum.json"
    code, _, error = diffmix("spectrum", "--model", named, "--hops", "1", "--limit", "1", "--output", output)
    assert code == 0, error
    assert json.loads(output.read_text())["command"] == f"diffmix spectrum --model {named} --hops 1 --limit 1"


def test_a_model_without_softmax_attention(diffmix, run_folder):
    code, _, error = diffmix("spectrum", "--model", run_folder)
    assert code == 2
    assert "mixer is neighbor" in error
    assert error.count("\n") == 1
