"""The article's five conclusions, and its remark on experiment 7, as claims that recorded runs can hold or refute.

    python -m common.compare --verdicts

Only a run of a script as it is here counts, on all 60,000 training images in batches of 200, in either precision.
"""
import statistics
from dataclasses import dataclass

from common import command_line, compare

SEEDS = 3               # that a side must have, for luck decides much
LOWERED = 30            # the epochs that experiment 3 trains before it lowers its rate
EPOCHS = 50             # of the article's runs
SEVENTH_EPOCHS = 3      # after which experiment 7 with --loss stable should have learnt, if it ever does
HOLDS, FAILS, NOT_YET = 'holds', 'does not hold', 'not yet shown'


@dataclass
class Claim:
    """One of the article's conclusions: its words, what of it runs can show, and the rule that judges."""

    conclusion: str
    claim: str
    rule: str
    judge: callable     # from {(experiment, loss method): [Recorded]} to (outcome, runs that show it)


def _earlier(ours, theirs):
    """Whether one side's first epoch over 0.9 comes earlier than the other's."""
    def judge(runs):
        shared = set.intersection(*({run.record['seed'] for run in runs[side]} for side in (ours, theirs)))
        sides = [[run for run in runs[side] if run.record['seed'] in shared] for side in (ours, theirs)]
        outcome = NOT_YET
        if len(shared) >= SEEDS:
            (least, most), (their_least, their_most) = (zip(*map(_over, side), strict=True) for side in sides)
            if max(most) < min(their_least):
                outcome = HOLDS
            elif statistics.median(least) >= statistics.median(their_most):
                outcome = FAILS
        return outcome, sides[0] + sides[1]
    return judge


EARLIER = (f'at least {SEEDS} seeds that both sides have. Holds: each of the one side is over 0.9 in an earlier epoch '
           'than all of the other. Does not hold: the median epoch of the one is no earlier than that of the other. A '
           'run whose training loss is not finite is never over 0.9 from there on; one that ended before it was, '
           'later than its last epoch')


def _rate_lowered(runs):
    """Whether experiment 3 is spared what befalls experiment 2."""
    late = [run for run in runs[2, 'manual'] if _nan(run) and run.over and run.over < _nan(run)]
    theirs = late + [run for run in runs[2, 'manual'] if _whole(run)]
    ours = [run for run in runs[3, 'manual'] if _whole(run) or (_nan(run) or 0) > LOWERED]
    outcome = NOT_YET
    if any(map(_nan, ours)):
        outcome = FAILS
    elif _seeds(theirs) >= SEEDS:
        if 2 * len(late) <= len(theirs):
            outcome = FAILS
        elif _seeds(ours) >= SEEDS:
            outcome = HOLDS
    return outcome, ours + theirs


def _seventh(runs):
    """Whether experiment 7 fails to learn, whichever form of the loss it has."""
    forms = runs[7, 'manual'], runs[7, 'stable']
    learnt = [run for form in forms for run in form if run.over]
    if learnt:
        return FAILS, learnt
    ended = [[run for run in form if run.diverged or len(run.rows) >= SEVENTH_EPOCHS] for form in forms]
    return HOLDS if min(map(_seeds, ended)) >= SEEDS else NOT_YET, forms[0] + forms[1]

CLAIMS = [
    Claim('1. A suitable initialization is very important.',
          "With experiment 4's initialization the first epoch over 0.9 comes earlier than with experiment 1's, where "
          '--loss stable rules out that it is only the loss formula that fails.',
          EARLIER, _earlier((4, 'manual'), (1, 'stable'))),
    Claim('2. Adjust the learning rate as training goes on.',
          'Lowering the rate at step 30 (experiment 3) prevents the late divergence that experiment 2 shows.',
          f'at least {SEEDS} seeds a side. Of experiment 2, runs count that were over 0.9 and had a training loss that '
          f'was not finite later on, or that trained {EPOCHS} epochs without; of experiment 3, those that had such a '
          f'loss after epoch {LOWERED}, when the rate is lower, or trained {EPOCHS} epochs without. Holds: most of '
          'experiment 2 had one and none of experiment 3. Does not hold: one of experiment 3 had, or no more than half '
          'of experiment 2', _rate_lowered),
    Claim('3. When unsure how to initialize, leave it to tf.get_variable.',
          'With its default (experiment 4) the first epoch over 0.9 comes earlier than with weights of deviation 0.01 '
          '(experiment 2).', EARLIER, _earlier((4, 'manual'), (2, 'manual'))),
    Claim('4. Grouping convolutions is a good idea for optimization.',
          'With grouping (experiment 5) the first epoch over 0.9 comes earlier than without (experiment 2).',
          EARLIER, _earlier((5, 'manual'), (2, 'manual'))),
    Claim('5. Batch normalization is very effective.',
          'With it (experiment 6) the first epoch over 0.9 comes earlier than without (experiment 2).',
          EARLIER, _earlier((6, 'manual'), (2, 'manual'))),
    Claim('On experiment 7: even with batch normalization, an unsuitable initialization keeps it from converging.',
          'Experiment 7 does not get over 0.9, neither with the loss formula of the article nor with --loss stable.',
          f'Holds: at least {SEEDS} seeds of each, and none over 0.9 when its training loss was first not finite or '
          f'after {SEVENTH_EPOCHS} epochs. Does not hold: one is over 0.9', _seventh),
]


def judge(recorded):
    """The verdicts on all claims: a list of (claim, outcome, runs that it rests on). recorded: [compare.Recorded]."""
    runs = {(n, loss): [] for n in compare.SCRIPTS for loss in ('manual', 'builtin', 'stable')}
    defaults = command_line.defaults()
    for run in recorded:
        n, changed = run.origin
        if changed == 0 and all(run.options[name] == defaults[name] for name in ('train_images', 'batch_size')):
            runs[n, run.options['loss']].append(run)
    return [(claim, *claim.judge(runs)) for claim in CLAIMS]


def table(verdicts, markdown=False):
    """The verdicts as text: conclusion, claim, rule, outcome and the runs that it rests on."""
    strong, end = ('**', '  ') if markdown else ('', '')
    first = {}
    paragraphs = []
    for number, (claim, outcome, runs) in enumerate(verdicts, 1):
        said = first.setdefault(claim.rule, number)
        paragraphs.append(f'{end}\n'.join([
            f'{strong}{claim.conclusion}{strong}', f'Claim: {claim.claim}',
            f'Rule: {claim.rule if said == number else f"that of {said}"}.',
            f'Verdict: {strong}{outcome}{strong}. {"; ".join(map(_shown, runs)) or "No run counts yet"}.']))
    return '\n\n'.join(paragraphs)


def _over(run):
    """The earliest and the latest epoch that a run's first one over 0.9 can be."""
    if run.over:
        return run.over, run.over
    return (float('inf') if run.diverged else len(run.rows) + 1), float('inf')


def _nan(run):
    """The epoch of the first training loss that is not finite, within as many as the article trains, or None."""
    return run.diverged if run.diverged and run.diverged <= EPOCHS else None


def _whole(run):
    return len(run.rows) >= EPOCHS and not _nan(run)


def _seeds(runs):
    return len({run.record['seed'] for run in runs})


def _shown(run):
    over = f'over 0.9 in epoch {run.over}' if run.over else 'not over 0.9'
    end = f'not finite in epoch {run.diverged}' if run.diverged else f'{len(run.rows)} epochs'
    return f'{run.name.removeprefix("reference/")} (seed {run.record["seed"]}): {over}, {end}'
