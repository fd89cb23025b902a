"""Every example runs, quickly, and shows what it says it shows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hansa as hs
from hansa.methods.base import METHODS

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def output_of(name: str, folder: Path) -> str:
    """What an example prints, run as a program in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def methods_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))


def test_the_hospitals_learn_a_better_model_together_than_north_and_harbour_alone(tmp_path):
    lines = output_of("simulate_hospitals.py", tmp_path).splitlines()[1:]
    loss = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert set(loss) == {"harbour", "north", "river", "federated", "pooled"}
    assert loss["federated"] < min(loss["harbour"], loss["north"])


def test_the_method_of_ones_own_ends_with_a_lower_loss_than_fedavg(tmp_path):
    found = re.findall(r"log loss (\S+) by FedAvg, (\S+) by FedProx", output_of("own_method.py", tmp_path))
    assert len(found) == 10
    fedavg, fedprox = map(float, found[-1])
    assert fedprox < fedavg


@pytest.mark.usefixtures("methods_are_forgotten")
def test_fedprox_without_a_pull_is_fedavg():
    example = imported("own_method")
    local = hs.SGD(lr=0.5, epochs=2, batch_size=16)
    assert example.losses(example.FedProx(local=local, mu=0)) == example.losses(hs.FedAvg(local=local))


@pytest.mark.usefixtures("methods_are_forgotten")
def test_a_method_of_ones_own_can_be_named_in_a_study(tmp_path):
    imported("own_method")
    study = tmp_path / "study.toml"
    study.write_text(
        '[task]\nkind = "logistic-regression"\ntarget = "malignant"\n[method]\nkind = "own-fedprox"\nmu = 0.5\n'
    )
    federation = hs.load(study)
    assert hs.Federation.from_json(federation.to_json()) == federation
    assert federation.method.mu == 0.5


def test_the_task_of_ones_own_learns_and_its_deviance_falls(tmp_path):
    deviances = re.findall(r"mean deviance (\S+)", output_of("own_task.py", tmp_path))
    assert float(deviances[-1]) < float(deviances[0]) * 0.75


def test_the_task_of_ones_own_is_simulated_from_a_study_and_its_bytes_are_in_the_hash(tmp_path):
    code = tmp_path / "own_task.py"
    code.write_bytes((EXAMPLES / "own_task.py").read_bytes())
    study = tmp_path / "study.toml"
    study.write_text('[task]\nmodule = "own_task:task"\n[method]\nkind = "fedavg"\nrounds = 2\n')
    federation = hs.load(study)
    assert federation.has_code
    run = federation.run(hs.Local(imported("own_task").clinics()))
    assert set(run.metrics()[-1]) == {"round", "loss", "deviance"}
    code.write_bytes(code.read_bytes() + b"\n")
    assert hs.load(study).hash != federation.hash


def test_the_effects_are_those_of_the_pooled_rows_and_of_the_published_trial(tmp_path):
    text = output_of("estimate_effects.py", tmp_path)
    [[coefficient, error, ratio]] = re.findall(r"control +(\S+) +(\S+) .* (\S+)$", text, re.MULTILINE)
    assert (coefficient, error, ratio) == ("1.5721", "0.4124", "4.82")
    texture = float(re.findall(r"mean_texture +(\S+)", text)[0])
    radius = float(re.findall(r"mean_radius +(\S+)", text)[0])
    assert 0.1 < texture < radius


def test_every_example_has_its_test():
    text = Path(__file__).read_text("utf-8")
    assert FILES
    for path in FILES:
        assert f'"{path.name}"' in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_says_how_to_run_it_and_needs_nothing_beside_it(path):
    text = path.read_text("utf-8")
    assert f"``python examples/{path.name}``" in text
    assert "shared" not in text
