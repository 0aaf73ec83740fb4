import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from diffmix.cli import main as main_module
from small_runs import SMALL

SETS = [part for override in SMALL for part in ("--set", override)]


def one_line(error, *expected):
    """The error is one line that says `expected`."""
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    for part in expected:
        assert part in error, error


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys; from diffmix.cli.main import main; main(['--help']);"
        "assert not {'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 5  # under 1 s on an idle machine
    for verb in ("train", "evaluate", "predict", "report", "data"):
        assert verb in done.stdout


def test_the_installed_command_answers():
    command = shutil.which("diffmix", path=str(__import__("pathlib").Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "diffmix 0.1.0\n")
    wrong = subprocess.run([command, "train", "nothing_like_it"], capture_output=True, text=True)
    assert wrong.returncode == 2
    one_line(wrong.stderr, "not found")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["trian"]),
        (["train"], ["recipe"]),
        (["train", "ag_news", "--epochs", "3"], ["--epochs"]),
        (["train", "ag_news", "--seeds", "0"], ["seeds"]),
        (["train", "ag_news", "--set", "hiden_size=3"], ["hiden_size", "'hidden_size'"]),
        (["train", "ag_news", "--set", "epochs=many"], ["epochs", "a number"]),
        (["train", "text_file"], ["--data"]),
        (
            ["train", "ag_news", "--set", "model=bert", "--set", "attn_implementation=foo"],
            ["attn_implementation: unknown attention 'foo'", "heat_kernel"],
        ),
        (["train", "text_file", "--data", "absent.csv"], ["absent.csv"]),
        (["evaluate", "absent"], ["absent", "config.json"]),
        (["predict", "absent", "text"], ["absent"]),
        (["predict", "absent", "text", "--input", "file.txt"], ["give one of them"]),
        (["data", "no_task"], ["no_task", "ag_news", "python_docs", "distant_symbol-N"]),
        (["data", "python_dox"], ["did you mean 'python_docs'?"]),
        (["data", "tiny_shakespeare", "--data", "absent"], ["tiny_shakespeare: no input.txt was found"]),
    ],
)
def test_wrong_requests_end_with_2_and_one_line(arguments, expected, diffmix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = diffmix(*arguments)
    assert code == 2
    one_line(error, *expected)
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["runs"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"txt,label\na,b\n", "text"),
        (b"text,label\na,x\nb,x\nc,x\n", "x"),
        (b"text,label\n\xff\xfe,x\nb,y\n", "UTF-8"),
    ],
)
def test_bad_files_end_with_2_and_leave_nothing(content, expected, diffmix, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    code, _, error = diffmix("train", "text_file", "--data", file, "--output", tmp_path / "run", *SETS)
    assert code == 2
    one_line(error, "bad.csv", expected)
    assert not (tmp_path / "run").exists()


def test_train_shows_the_result(run_folder, names_csv, diffmix):
    code, out, _ = diffmix(
        "train", "text_file", "--data", names_csv, "--output", run_folder, *SETS, "--resume"
    )  # finished: says so
    assert code == 0
    assert "nothing to do" in out
    assert "test/accuracy" in out


def test_a_run_goes_to_runs_by_default_and_never_over_another(names_csv, diffmix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "text_file", "--data", names_csv, *SETS, "--set", "max_steps=1"]
    assert diffmix(*arguments)[0] == 0
    metrics = (tmp_path / "runs/text_file/metrics.json").read_text()
    code, _, error = diffmix(*arguments)
    assert code == 2
    one_line(error, "runs/text_file", "--output")
    assert (tmp_path / "runs/text_file/metrics.json").read_text() == metrics


def test_ctrl_c_says_how_to_go_on(names_csv, diffmix, tmp_path, monkeypatch):
    from diffmix.training import callbacks

    def stop(*_, **__):
        raise KeyboardInterrupt

    arguments = ["train", "text_file", "--data", names_csv, "--output", tmp_path / "run", *SETS]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunRecorder, "on_evaluate", stop)
        code, _, error = diffmix(*arguments)
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: interrupted; continue with: diffmix train text_file")
    import shlex

    assert diffmix(*shlex.split(last.partition("continue with: diffmix ")[2]))[0] == 0


def test_seeds(names_csv, diffmix, tmp_path):
    code, out, _ = diffmix(
        *("train", "text_file", "--data", names_csv, "--output", tmp_path / "runs", "--seeds", 2, *SETS),
        *("--set", "max_steps=2"),
    )
    assert code == 0
    assert " to " in out  # intervals over the seeds
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"seed-0", "seed-1", "metrics.json"}
    for verb in (["evaluate"], ["predict"], ["calibrate"]):
        code, _, error = diffmix(*verb, tmp_path / "runs", *(["text"] if verb == ["predict"] else []))
        assert code == 2
        one_line(error, "holds no trained model", f"give {tmp_path / 'runs/seed-0'}")


def test_evaluate_repeats_the_runs_test_metrics(run_folder, diffmix):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    code, out, _ = diffmix("evaluate", run_folder, "--json")
    assert code == 0
    again = json.loads(out)
    assert again["test/accuracy"] == metrics["test/accuracy"]
    assert again["test/nll"] == pytest.approx(metrics["test/nll"], abs=0.02)  # bf16 where there is hardware for it
    code, out, _ = diffmix("evaluate", run_folder, "--split", "validation")
    assert code == 0
    assert f"{metrics['validation/accuracy']:.4f}" in out


def test_evaluate_measures_a_whole_file_of_others(run_folder, names_csv, diffmix, tmp_path):
    lines = names_csv.read_text().splitlines()
    russian = [line for line in lines[1:] if line.endswith(",ru")]
    file = tmp_path / "others.csv"
    file.write_text("\n".join([lines[0], *russian, ""]))
    code, out, _ = diffmix("evaluate", run_folder, "--data", file, "--json")
    assert code == 0
    measured = json.loads(out)
    assert measured["test/n"] == len(russian)
    predicted = [line.split("\t")[0] for line in diffmix("predict", run_folder, "--input", file)[1].splitlines()]
    assert measured["test/accuracy"] == pytest.approx(predicted.count("ru") / len(russian))
    moved = shutil.copy(names_csv, tmp_path / "moved.csv")  # which the run was trained on
    code, out, _ = diffmix("evaluate", run_folder, "--data", moved, "--json")
    assert json.loads(out)["test/n"] == json.loads((run_folder / "metrics.json").read_text())["test/n"]
    code, out, _ = diffmix("calibrate", run_folder, "--data", file, "--output", tmp_path / "out", "--json")
    assert json.loads(out)["before/n"] == len(russian)


def test_a_file_that_a_model_may_have_been_trained_on_is_not_measured_whole(diffmix, names_csv, run_folder, tmp_path):
    held_out = json.loads((run_folder / "metrics.json").read_text())["test/n"]
    moved = shutil.copy(names_csv, tmp_path / "moved.csv")
    early = shutil.copytree(run_folder, tmp_path / "early")  # as earlier versions left runs
    (early / "data.json").write_text(json.dumps({"data": str(names_csv)}))
    assert json.loads(diffmix("evaluate", early, "--data", moved, "--json")[1])["test/n"] == held_out
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(names_csv, folder / "train.csv")
    trained = tmp_path / "run"
    assert diffmix("train", "text_file", "--data", folder, "--output", trained, *SETS, "--set", "max_steps=1")[0] == 0
    measured = json.loads(diffmix("evaluate", trained, "--data", folder / "train.csv", "--json")[1])
    assert measured["test/n"] == held_out


def test_data_that_changed_since_training_are_said(diffmix, names_csv, tmp_path):
    file, folder = tmp_path / "own.csv", tmp_path / "run"
    shutil.copy(names_csv, file)
    assert diffmix("train", "text_file", "--data", file, "--output", folder, *SETS, "--set", "max_steps=1")[0] == 0
    assert "has changed" not in diffmix("evaluate", folder)[2]
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(f"Insel {number},de\n" for number in range(20)))
    for verb in (["evaluate", folder], ["evaluate", folder, "--data", file], ["calibrate", folder]):
        code, _, error = diffmix(*verb)
        assert code == 0
        assert f"{file} has changed since this model was trained on it" in error


def test_evaluate_on_other_data_needs_known_labels(run_folder, diffmix, tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("text,label\n" + "".join(f"name {index},{'de' if index % 2 else 'xx'}\n" for index in range(40)))
    code, _, error = diffmix("evaluate", run_folder, "--data", file)
    assert code == 2
    one_line(error, "'xx'", "de, el, ru")
    code, _, error = diffmix("evaluate", run_folder, "--task", "digits")
    assert code == 2


def test_predict_texts(run_folder, diffmix):
    code, out, _ = diffmix("predict", run_folder, "Γερμανία", "Германия")
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["el", "ru"]
    code, out, _ = diffmix("predict", run_folder, "Γερμανία", "--json")
    row = json.loads(out)
    assert row["label"] == "el"
    assert sum(row["probabilities"].values()) == pytest.approx(1)


def test_predict_reads_what_is_piped_in(run_folder, diffmix, monkeypatch):
    class Pipe:
        buffer = io.BytesIO("Γερμανία\nГермания\n".encode())

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdin", Pipe())
    code, out, _ = diffmix("predict", run_folder)
    assert code == 0
    assert len(out.splitlines()) == 2
    Pipe.buffer = io.BytesIO("\ufeffΓερμανία\n".encode())
    assert json.loads(diffmix("predict", run_folder, "--json")[1])["text"] == "Γερμανία"
    Pipe.buffer = io.BytesIO(b"gut\n\xff\xfe\n")
    code, _, error = diffmix("predict", run_folder)
    assert code == 2
    one_line(error, "line 2", "UTF-8")


def test_predict_reads_the_column_that_was_trained_on_or_the_one_that_is_named(run_folder, diffmix, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run_folder, other)
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("text_column: null", "text_column: rv"))
    (tmp_path / "rev.csv").write_text("rv,text,n\nΓερμανία,Германия,1\n")
    arguments = ["predict", other, "--json", "--input", tmp_path / "rev.csv"]
    assert json.loads(diffmix(*arguments)[1])["label"] == "el"
    assert json.loads(diffmix(*arguments, "--text_column", "text")[1])["label"] == "ru"
    (tmp_path / "rev.csv").write_text("n,text\n1,Германия\n")  # which lacks that column, and has a usual one
    assert json.loads(diffmix(*arguments)[1])["label"] == "ru"
    (tmp_path / "rev.csv").write_text("a,b\nΓερμανία,1\n")
    for model in (other, run_folder):
        code, _, error = diffmix("predict", model, "--input", tmp_path / "rev.csv")
        assert code == 2
        one_line(error, "name it with --text_column NAME")
        assert "--set" not in error


def test_predict_files(run_folder, names_csv, diffmix, tmp_path):
    output = tmp_path / "out.jsonl"
    code, out, _ = diffmix("predict", run_folder, "--input", names_csv, "--output", output)
    assert code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 240
    assert "240" in out
    code, _, error = diffmix("predict", run_folder, "--input", names_csv, "--output", output)
    assert code == 2
    one_line(error, "--force")
    lines = tmp_path / "lines.txt"
    lines.write_text("Германия\n")
    assert diffmix("predict", run_folder, "--input", lines, "--output", output, "--force")[0] == 0
    assert json.loads(output.read_text())["label"] == "ru"
    assert diffmix("predict", run_folder, "--input", tmp_path / "absent.txt", "--output", output, "--force")[0] == 2
    assert json.loads(output.read_text())["label"] == "ru"  # a failed call overwrites nothing
    assert diffmix("predict", run_folder, "text", "--output", tmp_path / "no/folder.jsonl")[0] == 2
    code, _, error = diffmix("predict", run_folder, "text", "--output", tmp_path, "--force")
    assert code == 2
    one_line(error, "is a folder: give a file")
    code, _, error = diffmix("predict", run_folder, "caf\udce9")
    assert code == 2
    one_line(error, "TEXT is not UTF-8 (character 4)")


def test_predict_writes_into_a_pipe(run_folder, diffmix, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert diffmix("predict", run_folder, "Германия", "--output", pipe, "--force")[0] == 0
        assert json.loads(os.read(reader, 10_000))["label"] == "ru"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_damaged_model_ends_with_1(run_folder, diffmix, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, error = diffmix("predict", folder, "text")
    assert code == 1
    one_line(error, "damaged")
    (folder / "config.json").write_text("{")
    code, _, error = diffmix("evaluate", folder)
    assert code == 1
    one_line(error, "config.json")


def test_weights_that_are_missing_are_not_drawn(run_folder, diffmix, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    file = folder / "model.safetensors"
    kept = {key: weight for key, weight in load_file(file).items() if not key.startswith("classifier.")}
    save_file(kept, file, {"format": "pt"})
    for verb in (["predict", folder, "text"], ["evaluate", folder], ["calibrate", folder]):
        code, _, error = diffmix(*verb)
        assert code == 1
        one_line(error, f"{folder} is damaged (its weights lack classifier.")


@pytest.mark.parametrize("layers", [1, 3])
def test_a_depth_that_the_weights_have_not_is_no_answer(run_folder, diffmix, tmp_path, layers):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    code, _, error = diffmix("predict", folder, "text")
    assert code == 1
    one_line(error, "its weights", "layers.")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "null"),
        ("config.json", '{"architectures": 5}'),
        ("config.json", '{"architectures": "DiffmixForSequenceClassification"}'),
        ("environment.json", "{"),
        ("environment.json", "[]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", None),
        ("data.json", "[]"),
        ("data.json", '{"data": 5}'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(run_folder, diffmix, tmp_path, file, content):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    code, _, error = diffmix("evaluate", folder)
    assert code == 1
    one_line(error, file, "is damaged", "train the model again")


def test_damaged_metrics_of_a_finished_run_are_named(run_folder, names_csv, diffmix, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    (folder / "metrics.json").write_text("{")
    code, _, error = diffmix("train", "text_file", "--data", names_csv, "--output", folder, *SETS, "--resume")
    assert code == 1
    one_line(error, "metrics.json is damaged")


@pytest.mark.parametrize("content", [b"[1, 2]", b"task: [", b"\xff\xfe", b""])
def test_a_damaged_recipe_is_named(run_folder, diffmix, tmp_path, content):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    (folder / "recipe.yaml").write_bytes(content)
    code, _, error = diffmix("predict", folder, "text")
    assert code == 1
    one_line(error, "recipe.yaml is damaged", "train the model again")


def test_an_unfinished_run_holds_no_model(run_folder, diffmix, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    (folder / "config.json").unlink()
    code, _, error = diffmix("predict", folder, "text")
    assert code == 2
    one_line(error, "--resume")


def test_pixels_are_refused_where_text_is_read(run_folder, diffmix, tmp_path):
    small = ["--set", "limit=100", "--set", "max_steps=1", "--set", "hidden_size=16", "--set", "num_hidden_layers=1"]
    assert diffmix("train", "digits", "--output", tmp_path / "digits", *small)[0] == 0
    code, _, error = diffmix("predict", tmp_path / "digits", "text")
    assert code == 2
    one_line(error, "pixels")
    assert diffmix("evaluate", tmp_path / "digits")[0] == 0


def test_data_shows_and_writes_splits(names_csv, diffmix, tmp_path):
    code, out, _ = diffmix("data", "text_file", "--data", names_csv, "--output", tmp_path / "splits")
    assert code == 0
    assert "train" in out
    tables = {name: pq.read_table(tmp_path / f"splits/{name}.parquet") for name in ("train", "validation", "test")}
    assert sum(table.num_rows for table in tables.values()) == 240
    assert set(tables["train"]["label"].to_pylist()) == {"de", "el", "ru"}
    code, _, error = diffmix("data", "text_file", "--data", names_csv, "--output", tmp_path / "splits")
    assert code == 2
    one_line(error, "in use")


def test_data_generates_a_set_that_data_reads(diffmix, tmp_path, monkeypatch):
    from diffmix.tasks.long_range_arena.generated import GENERATED, GeneratedTask
    from diffmix.tasks.long_range_arena.listops import Grammar

    monkeypatch.setenv("DIFFMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(GENERATED, "listops", GeneratedTask((60, 20, 20), Grammar(20, 30)))
    code, out, _ = diffmix("data", "listops", "--output", tmp_path / "own")
    assert code == 0
    assert "length_median" in out
    assert "yardstick_two_levels" in out
    code, again, _ = diffmix("data", "listops", "--data", tmp_path / "own")
    assert (code, again) == (0, out.removesuffix(f"Wrote {tmp_path / 'own'}\n"))
    assert not (tmp_path / "cache").exists()
    code, _, error = diffmix("data", "listops", "--output", tmp_path / "own")
    assert code == 2
    one_line(error, "in use")
    code, _, error = diffmix("data", "lra_retrieval")
    assert code == 2
    one_line(error, "new_aan_pairs.train.tsv", "newsgroups_retrieval")
    (tmp_path / "own/set.json").write_text("{", encoding="utf-8")
    code, _, error = diffmix("data", "listops", "--data", tmp_path / "own")
    assert code == 2
    one_line(error, "set.json")
    (tmp_path / "basic_train.tsv").write_text("Source\tTarget\n[MIN 1 2\t1\n", encoding="utf-8")
    code, _, error = diffmix("data", "listops", "--data", tmp_path)
    assert code == 2
    one_line(error, "basic_train.tsv, line 2", "leaves 1 operators open")
    code, _, error = diffmix("data", "listops", "--data", tmp_path / "own/set.json")
    assert code == 2
    one_line(error, "is a file")


def test_data_shows_and_writes_texts_of_language_models(diffmix, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, text in (("train", "one two\nthree\n"), ("validation", "four\n")):
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    code, out, error = diffmix("data", "plain_text", "--data", folder, "--output", tmp_path / "splits")
    assert code == 0, error
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["train", "1", "documents:", "5", "words,", "14", "bytes"],
        ["validation", "1", "documents:", "2", "words,", "5", "bytes"],
        ["test", "none"],
    ]
    assert "source: texts" in out
    assert pq.read_table(tmp_path / "splits/train.parquet")["text"].to_pylist() == ["one two\nthree\n"]
    code, _, error = diffmix("data", "plain_text", "--data", folder, "--output", tmp_path / "splits")
    assert code == 2
    one_line(error, "in use")


def test_data_shows_and_writes_images_of_language_models(diffmix, tmp_path):
    code, out, error = diffmix("data", "digits_pixels", "--output", tmp_path / "digits")
    assert code == 0, error
    assert "64 pixels each, 17 grey values" in out
    table = pq.read_table(tmp_path / "digits/test.parquet")
    assert table.column_names == ["input_ids"]
    assert f"{table.num_rows:,} images" in out


def test_data_writes_pixels(diffmix, tmp_path):
    assert diffmix("data", "digits", "--output", tmp_path / "digits")[0] == 0
    table = pq.read_table(tmp_path / "digits/train.parquet")
    assert len(table["input_ids"][0]) == 64
    assert np.min(table["input_ids"].to_pylist()) > 0  # 0 is padding


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "x"), "no space left"),
        (PermissionError(13, "Permission denied", "x"), "Permission denied: x; give another path"),
        (NotADirectoryError(20, "Not a directory", "a.csv/x"), "Not a directory: a.csv/x; give another path"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "micro_batch_size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "out of memory"),
        (ZeroDivisionError("a\nb"), "DIFFMIX_DEBUG"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_failures_end_with_1_and_one_line(error, expected, diffmix, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(main_module, "app", fail)
    code, _, said = diffmix("train", "ag_news")
    assert code == 1
    one_line(said, expected)


def test_debug_keeps_the_traceback(diffmix, monkeypatch):
    monkeypatch.setenv("DIFFMIX_DEBUG", "1")
    with pytest.raises(Exception, match="not found"):
        diffmix("train", "nothing_like_it")


def test_the_arenas_study_prints_what_is_published_beside_it(diffmix, tmp_path):
    results = Path(__file__).parents[2] / "results"
    code, out, error = diffmix("study", "lra", "--dry-run", "--output", results, "--runs", tmp_path)
    assert code == 0, error
    assert "| Mega, published" in out
    assert "| `neighbor`" in out
