"""train.py's own order of the data; what a run leaves is tested in test_commands.py and test_faults.py."""

import itertools
import random

from train import make_batches

LENGTHS = random.Random(1).choices(range(5, 90), k=1003)


def test_batches_hold_every_index_once():
    batches = make_batches(LENGTHS, 8, seed=1, epoch=2)
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [3, 8] and max(map(len, batches)) == 8
    assert make_batches([], 8, seed=0, epoch=0) == []


def test_batches_are_a_function_of_seed_and_epoch():
    batches = make_batches(LENGTHS, 8, seed=1, epoch=2)
    random.random()
    assert make_batches(LENGTHS, 8, seed=1, epoch=2) == batches
    assert make_batches(LENGTHS, 8, seed=1, epoch=3) != batches
    assert make_batches(LENGTHS, 8, seed=2, epoch=2) != batches


def test_batches_waste_little_and_come_in_random_order():

    batches = make_batches(LENGTHS, 8, seed=1, epoch=0)
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    padded = sum(len(batch) * width for batch, width in zip(batches, longest))
    assert padded < 1.05 * sum(LENGTHS)
    rises = [first <= second for first, second in itertools.pairwise(longest)]
    assert 0.3 < sum(rises) / len(rises) < 0.7  # within a bucket that is not shuffled it would be 1
