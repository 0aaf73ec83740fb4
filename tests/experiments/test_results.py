import json

import pytest

from diffmix.errors import RequestError
from diffmix.experiments.results import claim_result, command_line, portable, read_result, write_result


def test_results_name_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFMIX_DATA", "/elsewhere/sets")
    write_result(tmp_path / "new" / "r.json", {"a": f"{tmp_path}/tok", "b": ["/elsewhere/sets/x"]}, data=tmp_path)
    assert read_result(tmp_path / "new" / "r.json") == {"a": "$DIFFMIX_DATA/tok", "b": ["$DIFFMIX_DATA/x"]}
    assert portable("data/x", "data") == "data/x"


def test_a_result_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "r.json"
    claim_result(path)
    path.write_text("{}")
    claim_result(path, force=True)
    for place in (path, tmp_path):
        with pytest.raises(RequestError, match=r"--force|folder"):
            claim_result(place)


@pytest.mark.parametrize("content", ["[1]", "{", None])
def test_a_missing_or_broken_result_is_named(tmp_path, content):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=r"r\.json"):
        read_result(path)


def test_the_command_holds_what_differs_from_the_defaults():
    options = {"dtype": "fp32", "steps": 5, "recipe": "a:b=[1, 2]", "data": None, "force": False}
    text = command_line("bench", "scaling", options=options, defaults={"dtype": "auto", "steps": 5})
    assert text == "diffmix bench scaling --dtype fp32 --recipe 'a:b=[1, 2]'"
    assert json.loads(json.dumps(text)) == text
