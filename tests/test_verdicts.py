"""common.verdicts: the rules, on small runs made by hand."""
import pytest
from test_recorded import LEARNT, NAN, PLATEAU

from common import recorded, verdicts
from common.recorded import Recorded


def load(*paths):
    return [Recorded(path) for path in paths]


def outcome(number, recorded):
    return verdicts.judge(recorded)[number - 1][1]


def at(epoch, length):
    """Rows of length epochs, over 0.9 from epoch on."""
    return [(100, 0.95 if epoch and k >= epoch else 0.1) for k in range(1, length + 1)]


@pytest.fixture
def seeds(make):
    """Runs of one experiment with seeds 0, 1, ..., a list of rows for each."""
    def seeds(experiment, *runs, divergence=None, **options):
        return load(*(make(f'{experiment}-{options.get("loss", "manual")}-{k}', experiment, rows, divergence, seed=k,
                           **options) for k, rows in enumerate(runs)))
    return seeds


EARLIER = [(1, 4, {}, 1, {'loss': 'stable'}), (3, 4, {}, 2, {}), (4, 5, {}, 2, {}), (5, 6, {}, 2, {})]


@pytest.mark.parametrize('number, ours, our_options, theirs, their_options', EARLIER)
@pytest.mark.parametrize('early, late, expected', [
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(4, 4), at(0, 3)], 'holds'),
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(3, 4), at(0, 3)], 'not yet shown'),
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(4, 4), at(0, 2)], 'not yet shown'),
    ([at(1, 1), at(2, 2)], [at(12, 13), at(12, 13), at(12, 13)], 'not yet shown'),
    ([at(12, 13), at(5, 5), at(4, 4)], [at(5, 5), at(3, 3), at(9, 9)], 'does not hold'),
    ([at(0, 4), at(0, 4), at(1, 1)], [at(5, 5), at(6, 6), at(7, 7)], 'not yet shown'),
    ([at(0, 5), at(0, 5), at(1, 1)], [at(5, 5), at(6, 6), at(7, 7)], 'does not hold'),
])
def test_verdict_earlier(number, ours, our_options, theirs, their_options, early, late, expected, seeds):
    recorded = [*seeds(ours, *early, **our_options), *seeds(theirs, *late, **their_options)]
    assert outcome(number, recorded) == expected


def test_verdict_earlier_counts_what_diverged_as_never(seeds):
    early = seeds(4, at(1, 1), at(1, 1), at(1, 1))
    assert outcome(1, early + seeds(1, [NAN], [NAN], [NAN], divergence=(1, 1), loss='stable')) == 'holds'
    assert outcome(1, early + seeds(1, [NAN], [NAN], [NAN], divergence=(1, 0))) == 'not yet shown', 'by the formula'
    diverged = seeds(5, [NAN], [NAN], [NAN], divergence=(1, 1))
    assert outcome(4, diverged + seeds(2, at(0, 1), at(0, 1), at(0, 1))) == 'does not hold', 'never is not earlier'


def test_verdict_earlier_wants_seeds_that_both_sides_have(make, seeds):
    others = load(*(make(f'other-{k}', 4, at(1, 1), seed=10 + k) for k in range(3)))
    late = seeds(2, at(3, 3), at(3, 3), at(3, 3))
    assert outcome(3, others + late) == 'not yet shown'
    assert outcome(3, [*others, *seeds(4, at(1, 1), at(1, 1), at(1, 1)), *late]) == 'holds'


def test_verdict_on_the_learning_rate(seeds):
    def late(experiment, *epochs):
        """Runs that learn in epoch 12, and whose loss is not finite from these on, or never within 50."""
        recorded = seeds(experiment, *[at(12, 50)] * len(epochs))
        for run, epoch in zip(recorded, epochs, strict=True):
            run.record['divergence'] = epoch and {'epoch': epoch, 'iteration': 0, 'loss': 'nan', 'cause': ''}
        return recorded
    theirs, cured = late(2, 47, 31, 50), late(3, None, None, None)
    assert outcome(2, theirs + cured) == 'holds'
    assert outcome(2, theirs + cured[:2]) == outcome(2, theirs[:2] + cured) == outcome(2, []) == 'not yet shown'
    assert outcome(2, late(2, 47, 31, None) + cured) == 'holds', 'two of three'
    assert outcome(2, late(2, 47, None, None) + cured) == 'does not hold', 'one of three'
    assert outcome(2, late(2, 47, 51, None) + cured) == 'does not hold', 'the article trains no 51st epoch'
    assert outcome(2, late(2, 47, 30, 31) + cured) == 'not yet shown', 'in epoch 30 the rate is the same in both'
    assert outcome(2, theirs + late(3, None, None, 31)) == 'does not hold'
    assert outcome(2, theirs + late(3, None, None, 30)) == 'not yet shown'
    assert outcome(2, theirs + seeds(3, *[at(0, 50)] * 3)) == 'not yet shown', 'they never learnt'
    assert outcome(2, theirs + seeds(3, *[at(12, 49)] * 3)) == 'not yet shown', 'it may be yet to come'
    others = late(3, None, None, None)
    for run in others:
        run.record['seed'] += 5
    assert outcome(2, theirs + others) == 'not yet shown', 'no seed in common'


def test_verdict_on_experiment_7(seeds):
    manual = seeds(7, [NAN], [NAN], [NAN], divergence=(1, 0))
    assert outcome(6, manual) == outcome(6, []) == 'not yet shown'
    assert outcome(6, manual + seeds(7, *[at(0, 21)] * 3, loss='stable')) == 'not yet shown'
    assert outcome(6, manual + seeds(7, *[at(0, 22)] * 3, loss='stable')) == 'holds'
    assert outcome(6, manual + seeds(7, at(0, 22), at(0, 22), at(0, 3), loss='stable')) == 'not yet shown'
    assert outcome(6, manual + seeds(7, at(3, 3), loss='stable')) == 'does not hold'


def test_verdicts_count_seeds_not_runs(make, seeds):
    """The longest run of a seed stands for it, and a side in bfloat16 is not held against one in float32."""
    early, late = seeds(4, at(1, 1), at(1, 1), at(1, 1)), seeds(2, at(3, 3), at(3, 3), at(3, 3))
    shorter = load(make('shorter', 2, at(0, 1), seed=0))
    assert outcome(3, shorter + early + late) == outcome(3, early + late + shorter) == 'holds'
    repeated = load(make('again', 4, at(1, 1), seed=0))
    assert outcome(3, early[:2] + repeated + late) == 'not yet shown'
    other = load(*(make(f'other-{k}', 2, at(3, 3), seed=k, precision='bfloat16') for k in range(3)))
    assert outcome(3, early + other) == 'not yet shown'
    both = load(*(make(f'both-{k}', 4, at(1, 1), seed=k, precision='bfloat16') for k in range(3)))
    assert outcome(3, early + late + other + both) == 'holds'
    assert outcome(3, early[:1] + late + other + both[:1]) == 'not yet shown', 'one seed in two precisions'


@pytest.mark.parametrize('change', [{'train_images': 20000}, {'batch_size': 100}, {'test_images': 999},
                                    {'replace': [('1e-4', '1e-3')]}])
def test_verdicts_count_the_articles_experiments_only(change, seeds, make):
    late = seeds(2, at(3, 3), at(3, 3), at(3, 3))
    changed = load(*(make(f'changed-{k}', 4, at(1, 1), seed=k, **change) for k in range(3)))
    assert outcome(3, changed + late) == 'not yet shown'


def test_report(seeds):
    judged = verdicts.judge([*seeds(4, at(1, 1), at(1, 2), at(2, 2)), *seeds(2, at(0, 2), at(12, 14), at(3, 3))])
    assert [found for _, found, _ in judged] == [verdicts.HOLDS if n == 3 else verdicts.NOT_YET for n in range(1, 7)]
    table, counts, first, _, third, *_ = (part.splitlines() for part in verdicts.report(judged).split('\n\n'))
    assert len(table) == 7 and table[3].endswith(f'  {verdicts.HOLDS}') and counts == [verdicts.COUNTS]
    claim = verdicts.CLAIMS[2]
    assert third[:2] == [claim.conclusion, f'Claim: {claim.claim}'] and third[2].endswith(' 1.'), 'the rule of claim 1'
    assert third[3].startswith('Runs: 4-manual-0 (seed 0): over 0.9 in epoch 1 of 1; ')
    assert '2-manual-0 (seed 0): not over 0.9 in 2 epochs; ' in third[3]
    assert first[2] == f'Rule: {verdicts.EARLIER}.' and '(seed' not in first[3]


def test_report_in_markdown(make):
    judged = verdicts.judge(load(*(make(f'{n}-{seed}', n, rows, seed=seed)
                                   for n, rows in ((4, LEARNT), (2, PLATEAU)) for seed in range(3))))
    report = verdicts.report(judged, markdown=True)
    assert report.startswith(verdicts.outcomes(judged, markdown=True) + '\n\n')
    assert report.count(f'| {verdicts.HOLDS} |') == 1 and report.count('  \nClaim: ') == 6


def test_the_recorded_runs():
    judged = verdicts.judge(recorded.load([recorded.REFERENCE], recorded.REFERENCE))
    assert judged[5][1] == verdicts.FAILS, 'which no further run can change'
