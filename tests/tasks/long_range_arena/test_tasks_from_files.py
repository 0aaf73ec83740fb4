"""Official ListOps and retrieval files, pairs of newsgroups, IMDB and CIFAR-10 under the benchmark's names."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal

from diffmix.tasks import TASKS, load_task
from diffmix.tasks.encoding import encode
from diffmix.tasks.long_range_arena import LRA_TASKS
from diffmix.tasks.long_range_arena.expressions import evaluate, to_text
from diffmix.tasks.long_range_arena.listops import generate
from diffmix.tasks.tokenizers import build_tokenizer

GOOD = b"Source\tTarget\r\n( ( ( [MIN 4 ) 7 ) ] )\t4\r\n[SM 4 7 ]\t1\r\n"


def listops_files(folder):
    drawn = generate(300, 0, 10, 30)
    rows = [
        f"{to_text(drawn.ids[first:last])}\t{label}\r\n"
        for first, last, label in zip(drawn.offsets[:-1], drawn.offsets[1:], drawn.labels, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in {"train": rows[:200], "val": rows[200:250], "test": rows[250:]}.items():
        (folder / f"basic_{name}.tsv").write_bytes(("Source\tTarget\r\n" + "".join(part)).encode())
    return drawn


@pytest.mark.parametrize("place", ["listops", "listops-1000", "."])
def test_official_listops_files_are_read(tmp_path, place):
    drawn = listops_files(tmp_path / place)
    task = load_task("listops", data=tmp_path)
    assert "yardstick_majority" not in task.facts  # test was not read yet
    test = task.load_test()
    assert [len(part) for part in (task.train, task.validation, test)] == [200, 50, 50]
    rows = [row for part in (task.train, task.validation, test) for row in part.input_ids]
    assert np.array_equal(np.concatenate(rows), drawn.ids)
    assert np.array_equal(evaluate(np.concatenate(list(test.input_ids)).astype(np.uint8)), test.labels)
    assert 0 < task.facts["yardstick_root_operator"] <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first line must be the header"),
        (b"a\tb\n", "its first line must be the header"),
        (b"Source\tTarget\n", "has no rows"),
        (GOOD + b"[MIN 4 7 ]\n", "line 4: must be an expression, a tab and a digit"),
        (GOOD + b"[MIN 4 7 ]\t10\n", "line 4: must be an expression, a tab and a digit"),
        (GOOD + b"[MIN 4 7 ]\t7\n", "line 4: mend label 7, the value is 4"),
        (GOOD + b"[MIN 4 7\t4\n", "line 4: leaves 1 operators open"),
        (GOOD + b"[FIRST 4 7 ]\t4\n", "line 4: '[FIRST' is no symbol"),
        (GOOD + b"\xff\xfe\t4\n", "line 4: "),
    ],
)
def test_malformed_listops_files_are_refused_on_one_line(tmp_path, content, message):
    listops_files(tmp_path)
    (tmp_path / "basic_train.tsv").write_bytes(content)
    assert message in refusal("listops", data=tmp_path)


def test_a_missing_listops_file_is_named(tmp_path):
    listops_files(tmp_path)
    (tmp_path / "basic_test.tsv").unlink()
    assert "basic_test.tsv: is missing" in refusal("listops", data=tmp_path)
    (tmp_path / "basic_val.tsv").unlink()
    assert "basic_val.tsv: cannot be read" in refusal("listops", data=tmp_path)


def aan(folder, train=b""):
    line = "1.0\tP05-1\tP05-2\t" + "ä" * 3000 + "\tshort\n" + '0.0\tP05-1\tP05-3\tone\ttwo "quoted\n'
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{split}.tsv").write_bytes(train if train and split == "train" else line.encode())


def test_official_retrieval_files_are_pairs_of_at_most_4000_bytes(tmp_path):
    aan(tmp_path / "lra_retrieval")
    task = load_task("lra_retrieval", data=tmp_path)
    test = task.load_test()
    assert test.labels.tolist() == [1, 0]
    assert test.texts[0] == "ä" * 2000
    assert list(test.pairs) == ["short", 'two "quoted']
    rows = encode(test, build_tokenizer("bytes", [], max_length=4000), 4000)
    assert len(rows[0]["input_ids"]) == 4000
    assert len(rows[0]["input_ids_pair"]) == 5


def test_retrieval_without_or_with_malformed_files_says_where_they_go(tmp_path):
    missing = refusal("lra_retrieval", data=tmp_path)
    assert "new_aan_pairs.train.tsv" in missing
    assert "newsgroups_retrieval" in missing
    assert "$DIFFMIX_DATA" in refusal("lra_retrieval")
    for content, message in {
        b"1.0\ta\tb\tc\n": "line 1: has 4 fields",
        b"2\ta\tb\tc\td\n": "label b'2' is not 0 or 1",
        b"1\ta\tb\tc\xff\td\n": "line 1: byte 0xff is not UTF-8",
        b"1\ta\tb\t" + b"c\xffd" * 2000 + b"\td\n": "line 1: byte 0xff is not UTF-8",
    }.items():
        aan(tmp_path, train=content)
        assert message in refusal("lra_retrieval", data=tmp_path)
    (tmp_path / "new_aan_pairs.test.tsv").unlink()
    assert "new_aan_pairs.test.tsv: is missing" in refusal("lra_retrieval", data=tmp_path)


def newsgroups(folder, per_group=20):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels = [group for group in range(20) for _ in range(per_group)]
        texts = [f"{split} message {number} of group {group}" for number, group in enumerate(labels)]
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, pa.int64())}), folder / f"{split}.parquet")


def test_pairs_of_newsgroups_are_balanced_right_and_within_a_split(tmp_path):
    newsgroups(tmp_path / "20newsgroups")
    task, again = (load_task("newsgroups_retrieval", data=tmp_path) for _ in range(2))
    used = []
    for part, other in zip((task.train, task.load_test()), (again.train, again.load_test()), strict=True):
        assert part.label_counts(2)[0] == part.label_counts(2)[1] > 100
        pairs = list(zip(part.texts, part.pairs, strict=True))
        groups = [tuple(text.split()[-1] for text in pair) for pair in pairs]
        assert [int(a == b) for a, b in groups] == part.labels.tolist()
        assert len({frozenset(pair) for pair in pairs if pair[0] != pair[1]}) == len(
            pairs
        )  # no message with itself, no pair twice
        assert pairs == list(zip(other.texts, other.pairs, strict=True))
        used.append({text for pair in pairs for text in pair})
    used.append({text for column in (task.validation.texts, task.validation.pairs) for text in column})
    assert sum(map(len, used)) == len(set.union(*used))
    assert "not the official" in task.facts["note"]
    assert len(load_task("newsgroups_retrieval", data=tmp_path, limit=5).train) == 5


def test_groups_too_small_to_pair_are_refused(tmp_path):
    newsgroups(tmp_path / "20newsgroups", per_group=2)
    assert "needs two groups or more" in refusal("newsgroups_retrieval", data=tmp_path)


def test_text_and_image_are_imdb_and_cifar10_under_their_names(tmp_path):
    (tmp_path / "imdb").mkdir()
    for split in ("train", "test"):
        table = pa.table({"text": [f"{split} {n}" for n in range(20)], "label": pa.array([0, 1] * 10, pa.int64())})
        pq.write_table(table, tmp_path / f"imdb/{split}.parquet")
    task = load_task("lra_text", data=tmp_path)
    assert (task.name, task.label_names, len(task.train)) == ("lra_text", ("neg", "pos"), 18)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from image_files import encoded, write_table

    colours = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        write_table(
            tmp_path / f"cifar10_jpeg/{split}.parquet", [encoded(c) for c in colours], [n % 10 for n in range(20)]
        )
    task = load_task("lra_image", data=tmp_path)
    assert (task.name, task.train.input_ids.shape[1], task.vocab_size) == ("lra_image", 1024, 257)
    assert "JPEG" in task.facts["note"]


def test_all_tasks_are_known_and_refuse_files_for_folders(tmp_path):
    assert set(LRA_TASKS) <= set(TASKS)
    (tmp_path / "file").touch()
    for name in LRA_TASKS:
        assert "is a file" in refusal(name, data=tmp_path / "file")
