"""The article's five conclusions, and its remark on experiment 7, as claims that recorded runs can show or refute.

    python -m common.compare --verdicts
"""
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from common import options
from common.recorded import grid

SEEDS = 3               # that a side must have, because one pair of runs can be luck
LOWERED = 30            # the epochs that experiment 3 trains before it lowers its rate
EPOCHS = 50             # of the article's runs
SEVENTH_EPOCHS = 22     # in which the article's slowest, experiment 5, has left its plateau
DEFAULTS = options.defaults()
COUNTS = (f'A run counts if its script is as published and it was trained on all {DEFAULTS["train_images"]:,} images '
          f'in batches of {DEFAULTS["batch_size"]} and tested on {DEFAULTS["test_images"]} or more. Of several '
          'runs with the same seed and precision, only the longest counts.')
HOLDS, FAILS, NOT_YET = 'holds', 'does not hold', 'not yet shown'


@dataclass
class Claim:
    """One of the article's conclusions: its words, the part of it that runs can show, and the rule that judges it."""

    conclusion: str
    claim: str
    rule: str
    judge: Callable     # from {(experiment, loss method): [Recorded]} to (outcome, runs on which it rests)


def _sides(ours, theirs):
    """The runs of the seeds and precisions that both sides have, only the longest of each: two lists, and the number of
    seeds."""
    def longest(runs):
        return {(run.record['seed'], run.precision): run for run in sorted(runs, key=lambda run: len(run.rows))}
    ours, theirs = longest(ours), longest(theirs)
    shared = sorted(ours.keys() & theirs.keys())
    return [ours[key] for key in shared], [theirs[key] for key in shared], len({seed for seed, _ in shared})


SHARED = f'at least {SEEDS} seeds that both experiments have, in the same precision'


def _earlier(ours, theirs):
    """A judge: does one side's first epoch over 0.9 come earlier than the other's?"""
    def judge(runs):
        one, other, seeds = _sides(runs[ours], runs[theirs])
        outcome = NOT_YET
        if seeds >= SEEDS:
            (least, most), (their_least, their_most) = (zip(*map(_over, side), strict=True) for side in (one, other))
            if max(most) < min(their_least):
                outcome = HOLDS
            elif statistics.median(least) >= statistics.median(their_most):
                outcome = FAILS
        return outcome, one + other
    return judge


EARLIER = (f'{SHARED}. Holds if every run of the first is over 0.9 in an earlier epoch than every run of the second. '
           "Does not hold if the first's median epoch is no earlier than the second's. A run whose training loss "
           'becomes nan or infinite before it is over 0.9 counts as never over it. A run that ends before it is over '
           '0.9 counts as over it in some later epoch')


def _rate_lowered(runs):
    """Whether experiment 3 avoids the late divergence of experiment 2."""
    def counts(run):
        end = _nan(run) or len(run.rows)
        return run.over and run.over < end and (end > LOWERED if _nan(run) else end >= EPOCHS)
    ours, theirs, seeds = _sides(*(filter(counts, runs[n, 'manual']) for n in (3, 2)))
    outcome = NOT_YET
    if seeds >= SEEDS:
        late = [run for run in theirs if _nan(run)]
        outcome = FAILS if any(map(_nan, ours)) or 2 * len(late) <= len(theirs) else HOLDS
    return outcome, ours + theirs


def _seventh(runs):
    """Whether experiment 7 fails to learn, whichever form of the loss it has."""
    forms = runs[7, 'manual'], runs[7, 'stable']
    if any(run.over for form in forms for run in form):
        return FAILS, forms[0] + forms[1]
    ended = [{run.record['seed'] for run in form if run.diverged or len(run.rows) >= SEVENTH_EPOCHS} for form in forms]
    return HOLDS if min(map(len, ended)) >= SEEDS else NOT_YET, forms[0] + forms[1]


CLAIMS = [
    Claim('1. A suitable initialization is very important.',
          "With experiment 4's initialization the first epoch over 0.9 comes earlier than with experiment 1's. "
          'Experiment 1 has --loss stable here, so that it cannot fail by the loss formula alone.',
          EARLIER, _earlier((4, 'manual'), (1, 'stable'))),
    Claim('2. Adjust the learning rate as training goes on.',
          'Lowering the rate after 30 epochs (experiment 3) prevents the late divergence that experiment 2 shows.',
          f'{SHARED}. A run counts if it got over 0.9 and after that either reached epoch {EPOCHS} or diverged: its '
          f'training loss became nan or infinite after epoch {LOWERED}, when experiment 3 has the lower rate. Holds if '
          'most of experiment 2 diverged and none of experiment 3. Does not hold if one of experiment 3 diverged, or '
          'no more than half of experiment 2',
          _rate_lowered),
    Claim('3. When unsure how to initialize, leave it to tf.get_variable.',
          'With its default (experiment 4) the first epoch over 0.9 comes earlier than with weights of stddev 0.01 '
          '(experiment 2).', EARLIER, _earlier((4, 'manual'), (2, 'manual'))),
    Claim('4. Grouping convolutions is a good idea for optimization.',
          'With grouping (experiment 5) the first epoch over 0.9 comes earlier than without (experiment 2). The '
          'article also says that grouping prevents the late nan; this is not judged.',
          EARLIER, _earlier((5, 'manual'), (2, 'manual'))),
    Claim('5. Batch normalization is very effective.',
          'With it (experiment 6) the first epoch over 0.9 comes earlier than without (experiment 2). Experiment 6 '
          'also leaves out local response normalization; the two effects are not separated.',
          EARLIER, _earlier((6, 'manual'), (2, 'manual'))),
    Claim('On experiment 7: even with batch normalization, an unsuitable initialization cannot make the model converge '
          '(judged here: learn).',
          "Experiment 7 does not get over 0.9, neither with the article's loss formula nor with --loss stable. "
          'Whether its loss settles is not judged.',
          f'at least {SEEDS} seeds with each loss. Holds if no run is over 0.9 when its training loss becomes nan or '
          f'infinite, or after {SEVENTH_EPOCHS} epochs. Does not hold if one run is over 0.9, however few runs there '
          'are', _seventh),
]


def judge(runs):
    """The verdicts on all claims: a list of (claim, outcome, runs on which it rests). runs: [Recorded]."""
    by_experiment = defaultdict(list)
    for run in runs:
        if run.experiment:
            by_experiment[run.experiment, run.options['loss']].append(run)
    return [(claim, *claim.judge(by_experiment)) for claim in CLAIMS]


def outcomes(verdicts, markdown=False):
    """A table with a line for each conclusion: its words and the verdict."""
    return grid(["the article's conclusion", 'verdict'],
                [[claim.conclusion, outcome] for claim, outcome, _ in verdicts], markdown)


def report(verdicts, markdown=False):
    """The verdicts as text: the outcomes, which runs count, then for each conclusion its claim, its rule and its
    runs."""
    strong, end = ('**', '  ') if markdown else ('', '')
    first = {}
    parts = [outcomes(verdicts, markdown), COUNTS]
    for number, (claim, _, runs) in enumerate(verdicts, 1):
        said = first.setdefault(claim.rule, number)
        parts.append(f'{end}\n'.join([
            f'{strong}{claim.conclusion}{strong}', f'Claim: {claim.claim}',
            f'Rule: {claim.rule if said == number else f"as in {said}"}.',
            f'Runs: {"; ".join(map(_shown, runs)) or "none counts yet"}.']))
    return '\n\n'.join(parts)


def _over(run):
    """The earliest and the latest epoch in which a run can first be over 0.9."""
    if run.over:
        return run.over, run.over
    return (float('inf') if run.diverged else len(run.rows) + 1), float('inf')


def _nan(run):
    """The epoch of the first training loss that is not finite, or None where the article trains no such epoch."""
    return run.diverged if run.diverged and run.diverged <= EPOCHS else None


def _shown(run):
    epochs = len(run.rows)
    over = (f'over 0.9 in epoch {run.over} of {epochs}' if run.over else
            f'not over 0.9 in {epochs} epoch' + 's' * (epochs != 1))
    end = f', not finite in epoch {run.diverged}' if run.diverged else ''
    return f'{run.name} (seed {run.record["seed"]}): {over}{end}'
