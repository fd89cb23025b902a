"""``hansa new`` writes a study that can be read back."""

import json
import tomllib

import pytest

from hansa.cli.boundary import run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_new_study_holds_every_section_with_the_names_given(tmp_path, capsys):
    assert run(["new", "tumours", "--target", "malignant", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "study.toml", "name": "tumours"}
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["study"] == {"name": "tumours", "dataset": "tumours"}
    assert study["task"] == {"kind": "logistic-regression", "target": "malignant", "features": ["*"]}
    assert study["method"]["kind"] == "fedavg"
    assert study["method"]["local"] == {"optimizer": "sgd", "lr": 0.1, "epochs": 1, "batch_size": 32}
    assert study["aggregation"]["stages"] == [{"kind": "clip", "norm": 1.0}]


@pytest.mark.parametrize("name", ["肿瘤", 'a "quoted" name', "back\\slash"])
def test_any_printable_name_survives(tmp_path, name):
    assert run(["new", name, "--dataset", name, "--target", name]) == 0
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["study"] == {"name": name, "dataset": name}
    assert study["task"]["target"] == name


@pytest.mark.parametrize("name", ["", "  ", "two\nlines"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name, capsys):
    assert run(["new", name]) == 2
    assert "NAME must be a name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path, capsys):
    (tmp_path / "study.toml").write_text("mine", "utf-8")
    assert run(["new", "tumours"]) == 2
    assert "study.toml is there already" in capsys.readouterr().err
    assert (tmp_path / "study.toml").read_text("utf-8") == "mine"
    assert run(["new", "tumours", "--force"]) == 0
    assert "tumours" in (tmp_path / "study.toml").read_text("utf-8")


def test_a_folder_that_is_not_there_is_named(capsys):
    assert run(["new", "tumours", "-o", "nowhere/study.toml"]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
