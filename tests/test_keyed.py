"""Public randomness depends on its key and on nothing else."""

from __future__ import annotations

from hansa.keyed import generator, key


def test_the_same_key_draws_the_same_numbers_on_every_machine() -> None:
    # Written down once: another NumPy or another processor must draw the same.
    assert generator(0, "batches", 3, "north").permutation(8).tolist() == [7, 6, 3, 2, 0, 5, 1, 4]
    assert key(0, "batches", 3, "北").hex()[:16] == "44a2c76ae4be6251"


def test_every_part_of_the_key_counts() -> None:
    keys = [
        key(0, "batches", 1, "north"),
        key(1, "batches", 1, "north"),
        key(0, "cohort", 1, "north"),
        key(0, "batches", 2, "north"),
        key(0, "batches", 1, "river"),
        key(0, "batches", "1", "north"),
        key(0, "batches", 11, "north"),
        key(0, "batches", 1),
        key(-1),
        key(2**80),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(k) for k in keys} == {32}
