"""``hansa new``: a study to start from, with a comment at every choice."""

import json as json_text
from pathlib import Path
from string import Template
from typing import Annotated, Literal

from cyclopts import Parameter

from hansa.cli.home import not_written
from hansa.cli.output import Json, Output
from hansa.errors import UsageError

Kind = Literal["linear-regression", "logistic-regression", "softmax-regression"]

TARGETS = {
    "linear-regression": ("r2", 0.9),
    "logistic-regression": ("auc", 0.995),
    "softmax-regression": ("accuracy", 0.95),
}


def new(
    name: str,
    /,
    *,
    target: str = "outcome",
    kind: Kind = "logistic-regression",
    dataset: str = "",
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("study.toml"),
    force: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Write a commented study to start from.

    For example:

        hansa new tumours --target malignant

    Args:
        name: what the study is called.
        target: the column to predict.
        kind: what is learnt.
        dataset: the name under which each party offers its table; the study's name if not given.
        output: the file to write.
        force: overwrite a file that is there."""
    for label, word in (("NAME", name), ("--target", target), ("--dataset", dataset or name)):
        if not word.strip() or not word.isprintable():
            raise UsageError(f"{label} must be a name, not {word!r}", remedy="Use printable letters.")
    metric, aim = TARGETS[kind]
    # A JSON string without escapes for letters is a TOML basic string too.
    words = {"name": name, "dataset": dataset or name, "target": target}
    quoted = {key: json_text.dumps(word, ensure_ascii=False) for key, word in words.items()}
    template = Template(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    text = template.substitute(quoted, kind=kind, metric=metric, aim=aim, file=output.name)
    try:
        with output.open("w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} is there already", remedy="Choose another --output, or add --force.") from None
    except OSError as error:
        raise not_written(output, error) from None
    out = Output(json)
    out.say(f"Wrote {output}. Try it on one machine:")
    out.say(f"  hansa simulate {output} --data table.csv --by COLUMN")
    out.finish({"file": str(output), "name": name})
