import dataclasses

import pytest

from diffmix.benchmarks.specs import Options
from diffmix.benchmarks.suites import BENCHMARKS
from diffmix.cli.bench import TIMED, TIMED_OPTIONS
from diffmix.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "distilbret"], "distilbret"),
        (["bench", "convergence"], "--run"),
        (["bench", "swap"], "--run"),
        (["bench", "distilbret"], "paper_memory, convergence, equilibrium, swap"),
        (["bench", "scaling", "--run", "somewhere"], "no --run"),
        (["bench", "equilibrium", "--steps", "3", "--recipe", "nosuch"], "no --recipe, no --steps"),
        (["bench", "convergence", "--run", "somewhere", "--repetitions", "2"], "it takes --run, --steps, --data"),
        (["bench", "swap", "--run", "somewhere", "--steps", "2"], "no --steps"),
        (["bench", "convergence", "--run", "somewhere", "--dtype", "auto"], "no --dtype"),
        (["bench", "distilbert", "--recipe", "no_such_recipe"], "no_such_recipe"),
        (["compare", "ag_news:no_such_key=1"], "no_such_key"),
        (["compare"], "RECIPE"),
    ],
)
def test_wrong_requests_end_with_2_and_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert list(tmp_path.iterdir()) == []


def test_bench_names_every_benchmark():
    assert tuple(BENCHMARKS) == TIMED
    assert {option.name for option in dataclasses.fields(Options)} == set(TIMED_OPTIONS)


def test_bench_writes_its_result_and_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("task: text_file\ntokenizer: bytes\nhidden_size: 16\nnum_hidden_layers: 1\nmax_length: 16\n")
    small = ["--batch", "1", "--tokens", "4096", "--steps", "1", "--repetitions", "1", "--dtype", "fp32"]
    assert main(["bench", "scaling", "--recipe", str(recipe), *small]) == 0
    assert "| 4,096" in capsys.readouterr().out
    assert (tmp_path / "results" / "bench-scaling-tiny.json").is_file()


def test_demo_refuses_a_folder_of_others(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "not a demo" in capsys.readouterr().err
