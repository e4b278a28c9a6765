"""What the seven experiments share. Import it before TensorFlow.

What a script uses:
    run             what a script calls, in the order in which it calls it
    options         the command line that all seven share
    opening         how a run begins, or an earlier one is opened to go on
    state           a run on the disk: its epochs, record and weights
    checkpoints     weights by global step: written, kept, restored
    records         CSV, JSON and log of a run, each written whole
    evaluation      loss and accuracy on the test images
    divergence      why a training loss is not finite
    propagation     the signal: the part of a layer's output that differs between images
    forecast        when a plateau will end, predicted from the signal
    mnist           MNIST: found or fetched, verified, served in batches
    download        where MNIST's files come from
    images          28x28 to 227x227 with cv2; the next batch meanwhile
    ops             the article's operations, computed faster; bfloat16
    scripts         the scripts' text, and whether two are the same
    machine         versions, hardware, memory
    terminal        signals, and the line that shows where a run is
    events          scalars for TensorBoard
    plots           every figure, by one style
    labels          names in a figure, where they cover nothing
What reads the records:
    recorded        a run read back; the figures of the article and of its author
    verdicts        the article's conclusions as claims that runs can hold or refute
    story           the tables of results/reference/README.md
Of a sweep:
    trial           one of its runs, on the machine where Ray puts it
    watch           what happens meanwhile where it was started
Commands, python -m common.NAME:
    compare         runs side by side, with each other and with the article
    probe           one batch through a network: a script's before training, a run's at its checkpoint
    sweep           many runs, on this machine or on a Ray cluster
    benchmark       seconds an iteration, the article's way and ours
    readme          writes what is generated in the READMEs and docstrings
"""
import os

from common import scripts  # noqa: F401    it reads the running script's text before that can be edited

# Without a GPU, soft placement makes TensorFlow print some 20 lines of warnings for each variable.
# It reads this when it is imported; 2 leaves errors.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

# Notebooks set it for whatever they start, to a backend that is not installed here. Only --show needs one.
MPLBACKEND = os.environ.pop('MPLBACKEND', None)
