"""Three hospitals learn one model, simulated in this process: ``python examples/simulate_hospitals.py``.

The tables are those of ``hansa demo``: 569 rows of the Wisconsin breast cancer data, split so that each
hospital sees another mixture of malignant and benign cases. With the same study, seed and tables, the
deployed run of the demo ends with the same bits.
"""

import hansa as hs
from hansa.comparison import compare

hospitals = hs.wisconsin.hospitals()

federation = hs.Federation(
    name="tumours",
    task=hs.LogisticRegression(target="malignant"),
    method=hs.FedAvg(local=hs.SGD(lr=0.5, epochs=1, batch_size=32)),
    aggregation=hs.aggregation.clip(1.0),
    rounds=30,
    evaluation=hs.Evaluate(split="split"),  # rows whose value is "test" are held out
)

if __name__ == "__main__":
    run = federation.run(hs.Local(hospitals))
    print(f"{'model':<12}{'rows':>6}{'accuracy':>10}{'AUC':>8}{'log loss':>10}")
    # Only a simulation may see all rows in one place; that is what the comparison needs.
    for one in compare(federation, hospitals, run.model):
        m = one.metrics
        print(f"{one.name:<12}{one.rows:>6}{m['accuracy']:>10.4f}{m['auc']:>8.4f}{m['loss']:>10.4f}")
