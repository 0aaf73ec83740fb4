import pytest
import typer
from run_folders import write_run
from typer.testing import CliRunner

from diffmix.cli.report import report
from diffmix.errors import RequestError


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(report)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_one_run_gets_its_report_in_its_folder(run, command):
    result = command(run)
    assert result.exit_code == 0
    assert result.output.strip() == f"Wrote {run / 'report.html'}"
    assert (run / "report.html").is_file()


def test_several_runs_get_one_report_here(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(run, write_run(tmp_path / "other", seed=1)).exit_code == 0
    assert (tmp_path / "report.html").is_file()


def test_an_existing_report_needs_force(run, command, tmp_path):
    output = tmp_path / "mine.html"
    assert command(run, "--output", output).exit_code == 0
    refused = command(run, "--output", output)
    assert isinstance(refused.exception, RequestError)
    assert "--force" in str(refused.exception)
    assert command(run, "--output", output, "--force").exit_code == 0


def test_figures_are_written_as_files_where_asked(run, command, tmp_path):
    result = command(run, "--figures", tmp_path / "figures")
    assert result.output.splitlines()[1] == f"Wrote its figures as PNG and SVG to {tmp_path / 'figures'}"
    assert len(list((tmp_path / "figures").glob("*.png"))) == len(list((tmp_path / "figures").glob("*.svg"))) == 3


def test_no_run_is_a_wrong_request(command):
    assert command().exit_code == 2
