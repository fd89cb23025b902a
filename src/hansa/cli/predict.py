"""``hansa predict``: what a learnt model says of a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.cli.data import read_table
from hansa.cli.home import Encoding, not_written
from hansa.cli.output import Json, Output

if TYPE_CHECKING:
    from hansa.contribution import Array
    from hansa.model import Model


def predict(
    model: Path, /, *, data: str, output: Path | None = None, encoding: Encoding = "utf-8", json: Json = False
) -> None:
    """Apply a learnt model, with the preprocessing that is stored in it, to a table.

    For example:

        hansa predict hansa-runs/RUN/model.safetensors --data new.csv --output predicted.csv

    Args:
        model: the model.safetensors of a run.
        data: the table: a CSV or Parquet file, or URL#SELECT ...
        output: a CSV file for the table with its predictions; a summary is shown without it."""
    from hansa.data.source import write_csv
    from hansa.model import Model

    out, loaded = Output(json), Model.load(model)
    table = read_table(data, encoding)
    columns = _columns(loaded, loaded.predict(table))
    if output is not None:
        try:
            write_csv(output, table.of({**table.columns, **columns}))
        except OSError as error:
            raise not_written(output, error) from None
        out.say(f"{table.rows} predictions are in {output}, beside the table's own columns.")
    else:
        shown = [(i + 1, *(values[i] for values in columns.values())) for i in range(min(10, table.rows))]
        out.table(("row", *columns), shown)
        if table.rows > len(shown):
            out.say(f"... and {table.rows - len(shown)} more; --output FILE writes them all.")
    metrics = None
    if loaded.task.target in table.names:
        metrics = loaded.score(table)
        out.say("On these rows: " + ", ".join(f"{n} {v:.4f}" for n, v in metrics.items()))
    told = {"rows": table.rows, "metrics": metrics, "output": output}
    out.finish({**told, "predictions": {name: list(values) for name, values in columns.items()}})


def _columns(model: Model, predicted: Array) -> dict[str, Any]:
    """Predictions under the names of the columns that they become."""
    target = model.task.target
    if predicted.ndim == 2:
        classes = getattr(model.task, "classes", range(predicted.shape[1]))
        likeliest = [str(classes[i]) for i in predicted.argmax(axis=1)]
        chances = {f"{target}={label}": predicted[:, i] for i, label in enumerate(classes)}
        return {f"predicted {target}": likeliest, **chances}
    names = {"logistic-regression": "probability", "cox-regression": "relative hazard"}
    return {f"{names.get(model.task.kind, 'predicted')} {target}": predicted}
