"""A study file becomes a federation, or an error that names the place and the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hansa as hs
from hansa.errors import StudyError
from hansa.study import from_mapping

STUDY = """
[study]
name = "tumours"
dataset = "tumours"
[task]
kind = "logistic-regression"
target = "malignant"
features = ["*"]
[method]
kind = "fedavg"
rounds = 30
weights = "examples"
local = { optimizer = "sgd", lr = 0.1, epochs = 1, batch_size = 32 }
server = { optimizer = "sgd", lr = 1.0, momentum = 0.0 }
stop = { metric = "auc", target = 0.995, patience = 5 }
[aggregation]
stages = [{ kind = "clip", norm = 1.0 }]
"""

CODE = """
import hansa as hs

task = hs.LinearRegression(target="y", l2=0.5)
number = 3
"""


def federation() -> hs.Federation:
    """What STUDY says, in Python."""
    return hs.Federation(
        name="tumours",
        task=hs.LogisticRegression(target="malignant"),
        method=hs.FedAvg(local=hs.SGD(lr=0.1, epochs=1, batch_size=32), server=hs.SGD(lr=1.0), weights="examples"),
        rounds=30,
        stop=hs.Stop(metric="auc", target=0.995, patience=5),
        aggregation=hs.aggregation.clip(1.0),
    )


def write(folder: Path, text: str | bytes, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(folder: Path, text: str | bytes, name: str = "study.toml") -> str:
    with pytest.raises(StudyError) as caught:
        hs.load(write(folder, text, name))
    assert str(caught.value).startswith(str(folder / name))
    return str(caught.value).removeprefix(f"{folder / name}: ")


def test_a_file_and_python_give_the_same_federation(tmp_path: Path) -> None:
    loaded = hs.load(write(tmp_path, STUDY))
    assert loaded == federation()
    assert loaded.hash == federation().hash
    assert not loaded.has_code


def test_the_hash_is_the_same_in_another_process_and_another_order_of_keys(tmp_path: Path) -> None:
    blocks = [f"[{block}" for block in STUDY.split("\n[")[1:]]
    shuffled = "\n".join(["\n".join([b.split("\n")[0], *b.split("\n")[:0:-1]]) for b in blocks])
    path = write(tmp_path, shuffled)
    program = f"import hansa; print(hansa.load({str(path)!r}).hash)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {federation().hash}


def test_every_setting_makes_another_hash(tmp_path: Path) -> None:
    changes = {
        "rounds = 30": "rounds = 31",
        'weights = "examples"': 'weights = "equal"',
        "norm = 1.0": "norm = 1.5",
        'name = "tumours"': 'name = "tumors"',
        'features = ["*"]': 'features = ["mean *"]',
        "momentum = 0.0": "momentum = 0.1",
        "patience = 5": "patience = 6",
        'kind = "fedavg"': 'kind = "fedavg" # same',
    }
    hashes = [hs.load(write(tmp_path, STUDY.replace(old, new, 1))).hash for old, new in changes.items()]
    assert len({federation().hash, *hashes}) == len(changes)


def test_one_changed_byte_in_a_bundled_file_changes_the_hash(tmp_path: Path) -> None:
    study = STUDY.replace("[study]", '[study]\nfiles = ["codes.csv", "notes/读我.txt"]')
    (tmp_path / "notes").mkdir()
    write(tmp_path, bytes(range(256)), "codes.csv")
    write(tmp_path, "x", "notes/读我.txt")
    before = hs.load(write(tmp_path, study))
    assert [(file.path, file.size) for file in before.bundle] == [("codes.csv", 256), ("notes/读我.txt", 1)]
    assert before.has_code
    assert hs.load(write(tmp_path, study)).hash == before.hash
    write(tmp_path, bytes([*range(255), 0]), "codes.csv")
    assert hs.load(write(tmp_path, study)).hash != before.hash


def test_a_study_with_little_in_it_takes_the_defaults(tmp_path: Path) -> None:
    short = '\ufeff[task]\nkind = "linear-regression"\ntarget = "y"\n'
    loaded = hs.load(write(tmp_path, short))
    assert loaded == hs.Federation(task=hs.LinearRegression(target="y"))
    assert loaded.method == hs.FedAvg()
    assert (loaded.name, loaded.dataset) == ("study", "study")


def test_every_table_of_a_study_is_read(tmp_path: Path) -> None:
    more = """
[cohort]
kind = "fixed"
size = 3
deadline = 5
[preprocessing]
standardise = false
[evaluation]
every = 2
split = "split"
[contract]
minimum_rows = 20
columns.age = { type = "number", unit = "years", low = 0 }
columns.stage = { type = "category", categories = ["I", "II"] }
"""
    loaded = hs.load(write(tmp_path, STUDY + more))
    assert loaded.cohort == hs.Fixed(size=3, deadline=5.0)
    assert loaded.preprocessing == hs.Moments(standardise=False)
    assert loaded.evaluation == hs.Evaluate(every=2, split="split")
    assert loaded.contract.columns["age"].unit == "years"
    assert hs.Federation.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[study]", "[studdy]", "unknown table [studdy]. Did you mean 'study'?"),
        ("name =", "nam =", "unknown key study.nam. Did you mean 'name'?"),
        ("target = \"m", "targte = \"m", "unknown key task.targte"),
        ("features =", "feature =", "unknown key task.feature. Did you mean 'features'?"),
        ("weights =", "weigths =", "unknown key method.weigths. Did you mean 'weights'?"),
        ("rounds =", "round =", "unknown key method.round"),
        ("batch_size =", "batchsize =", "method.local.batchsize. Did you mean 'batch_size'?"),
        ("momentum =", "momentun =", "method.server.momentun. Did you mean 'momentum'?"),
        ("patience =", "patiense =", "method.stop.patiense. Did you mean 'patience'?"),
        ("stages =", "stage =", "aggregation.stage. Did you mean 'stages'?"),
        ("norm =", "nrom =", "aggregation.stages.nrom"),
        ('"fedavg"', '"fedavgg"', "unknown method 'fedavgg'. Did you mean 'fedavg'?"),
        ('"fedavg"', '"zzz"', "unknown method 'zzz'. Known: "),
        ('"logistic-', '"logistical-', "Did you mean 'logistic-regression'?"),
        ('"sgd", lr = 0.1', '"sdg", lr = 0.1', "unknown optimizer 'sdg'. Did you mean 'sgd'?"),
        ('kind = "clip"', 'kind = "clap"', "unknown aggregation stage 'clap'. Did you mean 'clip'?"),
        ('kind = "clip", ', "", "the aggregation stage has no kind. Known: adaptive-clip, banded, "),
        ('kind = "fedavg"', "", "the method has no kind. Known: "),
        ("lr = 0.1,", "lr = -0.1,", "method.local.lr must be greater than 0, not -0.1"),
        ("lr = 0.1,", "lr = nan,", "method.local.lr must be a finite number, not nan"),
        ("rounds = 30", "rounds = 0", "method.rounds must be at least 1, not 0"),
        ("momentum = 0.0", "epochs = 2", "method.server.epochs: the server has no rows"),
        ("patience = 5", "patience = 0", "method.stop.patience must be at least 1, not 0"),
        ("batch_size = 32", 'batch_size = "al"', "method.local.batch_size must be a whole number"),
        ("batch_size = 32", "batch_size = 0", "local.batch_size must be at least 1 or 'all', not 0"),
        ('target = "malignant"', "", "task.target is missing"),
        ('[study]\n', 'method = "fedavg"\n[study]\n', "this is not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_its_place_and_the_nearest_word(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    assert STUDY.count(old) >= 1
    assert says in refusal(tmp_path, STUDY.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[study\n", "this is not TOML: Expected ']' at the end"),
        (b'[study]\nname = "\xff"', "this is not UTF-8: byte 16. Save it as UTF-8"),
        ("", "there is no [task]"),
        ('task = "logistic-regression"', "task is 'logistic-regression', not a table. Write [task]"),
        ("method = 3", "method is 3, not a table. Write [method] and its keys"),
        ("[[task]]\nx = 1", "task is [{'x': 1}], not a table"),
        ('[task]\nkind = "linear-regression"\ntarget = ""', 'task.target must be text that is not empty, not ""'),
    ],
)
def test_what_is_no_study_is_refused(text: str | bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[cohort]\nsize = 3", "unknown key cohort.size"),
        ('[cohort]\nkind = "fixed"', "cohort.size is missing"),
        ("[cohort]\nminimun = 3", "unknown key cohort.minimun. Did you mean 'minimum'?"),
        ("[preprocessing]\nstandardize = true", "Did you mean 'standardise'?"),
        ("[evaluation]\nevry = 2", "evaluation.evry. Did you mean 'every'?"),
        ("[evaluation]\nholdout = 1.0", "evaluation.holdout must be less than 1, not 1.0"),
        ("[contract]\nminimum_row = 2", "contract.minimum_row. Did you mean 'minimum_rows'?"),
        ('[contract.columns.age]\ntype = "number"\nlo = 3', "age.lo. Did you mean 'low'?"),
    ],
)
def test_the_other_tables_are_read_as_strictly(table: str, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, STUDY + table)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rounds = 30", 'rounds = "thirty"', 'method.rounds must be a whole number, not "thirty"'),
        ("rounds = 30", 'rounds = "3"', 'method.rounds must be a whole number, not "3"'),
        ("rounds = 30", "rounds = true", "method.rounds must be a whole number, not true"),
        ("rounds = 30", "rounds = 1.5", "method.rounds must be a whole number, not 1.5"),
        ("[study]", "[study]\nseed = true", "study.seed must be a whole number, not true"),
        ("[study]", '[study]\nseed = "0"', 'study.seed must be a whole number, not "0"'),
        ('name = "tumours"', "name = 3", "study.name must be text in quotes, not 3"),
        ("lr = 0.1", 'lr = "a"', 'method.local.lr must be a number, not "a"'),
        ("lr = 1.0", "lr = true", "method.server.lr must be a number, not true"),
        ("patience = 5", 'patience = "5"', 'method.stop.patience must be a whole number, not "5"'),
        ('["*"]', '"*"', 'task.features must be a list, [...], not "*"'),
        ('["*"]', "[1]", "task.features[0] must be text in quotes, not 1"),
        ('weights = "examples"', 'weights = "rows"', "must be 'examples' or 'equal', not \"rows\""),
        ("norm = 1.0", "norm = 0", "aggregation.stages.norm must be greater than 0, not 0"),
        ("stop = {", "stop = 3 # {", "method.stop must be a table, not 3"),
        ("[study]", "[preprocessing]\nstandardise = 1\n[study]", "must be true or false, not 1"),
        ("[study]", "[cohort]\nminimum = '2'\n[study]", "cohort.minimum must be a whole number"),
        (
            "[study]",
            "[contract.columns.'a b']\ntype = 'number'\nlow = true\n[study]",
            'contract.columns."a b".low must be a number, not true',
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_in_the_words_of_the_file(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    assert says in refusal(tmp_path, STUDY.replace(old, new, 1))


def test_a_long_wrong_value_is_shortened(tmp_path: Path) -> None:
    says = refusal(tmp_path, STUDY.replace("rounds = 30", f'rounds = "{"x" * 999}"'))
    assert says.endswith("xxx...")
    assert len(says) < 120


@pytest.mark.parametrize(
    "table", ['[contract.columns.血型]\ntype = "number"', "[contract.columns]\n血型 = { low = 0 }"]
)
def test_a_bare_key_in_another_script_is_answered_with_quotes(table: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, f"# 研究\n{STUDY}{table}").endswith('. Quote the key: "血型"')


def test_whole_numbers_for_numbers_and_lists_for_tuples_survive_json(tmp_path: Path) -> None:
    loaded = hs.load(write(tmp_path, STUDY.replace("lr = 0.1", "lr = 1")))
    assert loaded.method == hs.FedAvg(local=hs.SGD(lr=1.0, epochs=1, batch_size=32))
    again = hs.Federation.from_json(loaded.to_json())
    assert (again, again.hash) == (loaded, loaded.hash)


def test_files_that_are_no_list_or_not_there_are_refused(tmp_path: Path) -> None:
    one = STUDY.replace("[study]", '[study]\nfiles = "codes.csv"')
    assert "study.files is not a list of file names" in refusal(tmp_path, one)
    gone = STUDY.replace("[study]", '[study]\nfiles = ["codes.csv"]')
    assert "codes.csv cannot be read" in refusal(tmp_path, gone)


def test_a_study_that_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no such file: .*study\.toml\. `hansa new` writes"):
        hs.load(tmp_path / "study.toml")
    write(tmp_path, STUDY)
    with pytest.raises(StudyError, match=r"no such file: .*Did you mean 'study\.toml'"):
        hs.load(tmp_path / "studdy.toml")
    with pytest.raises(StudyError, match="no such file"):
        hs.load(tmp_path / "nowhere" / "study.toml")
    with pytest.raises(StudyError, match=r"is a folder\. Name the study file in it"):
        hs.load(tmp_path / "..")


def test_a_python_module_exposes_the_same_federation(tmp_path: Path) -> None:
    module = "import hansa as hs\nfederation = hs.Federation(task=hs.LinearRegression(target='y'))"
    loaded = hs.load(write(tmp_path, module, "study.py"))
    assert loaded == hs.Federation(task=hs.LinearRegression(target="y"))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("x = 1", "the module exposes no `federation`. Write federation = hansa.Federation"),
        ("federation = 3", "the module exposes no `federation`"),
        ("1 / 0", "the module fails: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "the module fails: ModuleNotFoundError"),
        ("def broken(:", "the module fails: SyntaxError"),
        ("import hansa as hs\nhs.FedAvg(lr=1)", "unknown key FedAvg.lr"),
        ("import hansa as hs\nhs.Federation(task=3)", "the task is 3. Write kind = ... there"),
        ("import hansa as hs\nhs.Federation(taks=3)", "unknown key federation.taks"),
    ],
)
def test_a_module_that_is_no_study_is_refused(module: str, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, module, "study.py")


def test_a_task_in_a_module_is_simulated_and_bundled(tmp_path: Path) -> None:
    write(tmp_path, CODE, "mine.py")
    study = write(tmp_path, '[task]\nmodule = "mine:task"\n[method]\nkind = "fedsgd"\nrounds = 2\n')
    loaded = hs.load(study)
    assert loaded.has_code
    assert [file.path for file in loaded.bundle] == ["mine.py"]
    table = hs.Table.of({"x": [1.0, 2.0, 3.0, 4.0], "y": [2.0, 4.0, 6.0, 8.0]})
    run = loaded.run(hs.Local({"a": table, "b": table}))
    plain = hs.Federation(task=hs.LinearRegression(target="y", l2=0.5), method=hs.FedSGD(), rounds=2)
    expected = plain.run(hs.Local({"a": table, "b": table}))
    assert run.parameters.tobytes() == expected.parameters.tobytes()
    assert run.metrics() == expected.metrics()
    write(tmp_path, CODE + "\n", "mine.py")
    assert hs.load(study).hash != loaded.hash


def test_code_that_came_as_json_is_never_loaded(tmp_path: Path) -> None:
    write(tmp_path, CODE, "mine.py")
    study = hs.load(write(tmp_path, '[task]\nmodule = "mine:task"\n'))
    received = hs.Federation.from_json(study.to_json())
    assert received.hash == study.hash
    assert received.has_code
    table = hs.Table.of({"x": [1.0, 2.0], "y": [2.0, 4.0]})
    with pytest.raises(StudyError, match=r"code \(mine:task\), which only `hansa simulate` runs"):
        received.run(hs.Local({"a": table, "b": table}))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("mine", """task.module is 'mine'. Write module = "file:object\""""),
        ("../mine:task", "task.module is '../mine:task'"),
        ("other:task", "task.module: no such file"),
        ("mine:tusk", "mine.py has no task named 'tusk'"),
        ("mine:number", "mine.py has no task named 'number'"),
    ],
)
def test_a_module_without_the_task_is_refused(module: str, says: str, tmp_path: Path) -> None:
    write(tmp_path, CODE, "mine.py")
    assert says in refusal(tmp_path, f'[task]\nmodule = "{module}"\n')


def test_a_task_with_a_module_says_everything_there(tmp_path: Path) -> None:
    write(tmp_path, CODE, "mine.py")
    says = refusal(tmp_path, '[task]\nmodule = "mine:task"\ntarget = "y"\n')
    assert "task.target beside task.module" in says


def test_a_mapping_is_read_like_a_file(tmp_path: Path) -> None:
    body = {"task": {"kind": "linear-regression", "target": "y"}, "study": {"seed": 4}}
    assert from_mapping(body, tmp_path).seed == 4
