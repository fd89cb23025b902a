"""Effects with standard errors, from sums: ``python examples/estimate_effects.py``.

First the odds of malignancy, from the tables of ``hansa demo``: three hospitals, 569 tumours. Then a trial
in three hospitals: weeks of remission of 42 patients with leukaemia, with a treatment or without (Freireich
et al. 1963, as printed by Gehan 1965; a ``+`` marks a remission that went on when the trial ended). No row
leaves a hospital, and every number is that of the pooled rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

import hansa as hs
from hansa.inference import Estimate
from hansa.methods import IRLS, Cox

tumours = hs.Federation(
    name="tumours",
    task=hs.LogisticRegression(target="malignant", features=("mean_texture", "mean_radius")),
    method=IRLS(),
    evaluation=hs.Evaluate(holdout=0),  # every row counts
)

TREATED = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
CONTROL = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


def hospitals() -> dict[str, hs.Table]:
    """Every third patient is treated in the same hospital."""
    treated, control = TREATED.split(), CONTROL.split()
    times = [*treated, *control]
    columns = {
        "control": np.repeat([0.0, 1.0], [len(treated), len(control)]),
        "weeks": np.array([float(time.rstrip("+")) for time in times]),
        "relapsed": np.array([float(not time.endswith("+")) for time in times]),
    }
    names = ("Berlin", "Paris", "Rome")
    return {name: hs.Table.of({key: column[i::3] for key, column in columns.items()}) for i, name in enumerate(names)}


remission = hs.Federation(
    name="remission",
    task=hs.CoxRegression(target="weeks", event="relapsed"),
    method=Cox(ties="efron"),
    evaluation=hs.Evaluate(holdout=0),
)


def show(rows: Sequence[Estimate]) -> None:
    """A table as statistics packages print it."""
    print(f"{'':<18}{'estimate':>10}{'std. error':>12}{'z':>8}{'p':>10}{'ratio':>9}")
    for row in rows:
        print(
            f"{row.name:<18}{row.coefficient:>10.4f}{row.error:>12.4f}{row.statistic:>8.2f}"
            f"{row.p:>10.2g}{row.ratio:>9.3g}"
        )


def fit(federation: hs.Federation, tables: Mapping[str, hs.Table]) -> hs.Run:
    """Simulated; `hansa run` would do it among real hospitals, with the same bits."""
    run = federation.run(hs.Local(tables))
    facts = run.model.facts["inference"]
    print(f"\n{federation.name}: {run.reason}, {facts['rows']} rows")
    show(run.summary())
    return run


if __name__ == "__main__":
    fit(tumours, hs.wisconsin.hospitals())
    trial = fit(remission, hospitals())
    baseline = trial.model.facts["inference"]["baseline"]
    print(f"the baseline hazard adds up to {baseline['hazard'][-1]:.2f} by week {baseline['times'][-1]:g}")
