"""The command line that all seven scripts share."""
import argparse
import ast
import os
import re
import sys
from pathlib import Path

from common import records
from common.records import ROOT

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000


def defaults(training_epoch=50, batch_size=200):
    """The options that a record keeps, a dict: what they are where they are not given."""
    return {'epochs': training_epoch, 'train_images': TRAIN_IMAGES, 'test_images': 1000, 'batch_size': batch_size,
            'seed': None, 'loss': 'manual', 'precision': 'float32', 'log_every': 1}


def parser(script, defaults):
    """The argparse parser of the script at path script, whose docstring's first line describes it.

    An option that a record keeps has no default here, so that --resume can tell what was given.
    """
    description, _, _ = (ast.get_docstring(ast.parse(records.source(script))) or '').partition('\n')
    parser = argparse.ArgumentParser(
        prog=script.name, description=description, allow_abbrev=False,
        epilog='Exit status: 0 done, also where the loss became nan; 2 a bad command line; 130 after Ctrl-C, 143 after '
               'SIGTERM; 1 anything else.')
    add = parser.add_argument

    def add_recorded(option, help, **keywords):
        default = defaults[option.strip('-').replace('-', '_')]
        add(option, default=argparse.SUPPRESS, help=f'{help} (default: {default or "drawn at random"})', **keywords)
    add_recorded('--epochs', 'train N times on all training images', type=between(1, 1_000_000), metavar='N')
    add_recorded('--train-images', 'train on the first N images', type=between(1, TRAIN_IMAGES), metavar='N')
    add_recorded('--test-images', 'test on the first N images', type=between(1, TEST_IMAGES), metavar='N')
    add_recorded('--batch-size', 'images in a batch', type=between(1, TRAIN_IMAGES), metavar='N')
    add_recorded('--seed', 'for variables, dropout and data order', type=between(0, 2**32 - 1), metavar='S')
    add_recorded('--loss', "manual: the article's method 1, a sum over the batch that can underflow to nan; builtin: "
                 'its method 2 as printed, a mean; stable: method 2 summed, the same value as manual without its '
                 'underflow', choices=['manual', 'builtin', 'stable'])
    add_recorded('--precision', 'bfloat16: on a CPU, convolutions and matrix products in bfloat16, variables and loss '
                 'in float32; faster where the CPU has instructions for it', choices=['float32', 'bfloat16'])
    add_recorded('--log-every', 'measure and print the training accuracy every N-th iteration',
                 type=between(1, 1_000_000), metavar='N')
    add('--name', type=_name, help="the run's name; NAME-2, -3, ... where it is taken (default: the script's)")
    add('--resume', nargs='?', const=True, type=_name, metavar='NAME',
        help="go on with that run, or with this script's newest unfinished one")
    add('--probe', action='store_true', help='look at how one batch gets through the network before any training, '
        'and stop')
    add('--stop-on-nan', action='store_true', help='end at the first training loss that is not finite')
    add('--tensorboard', action='store_true', help='write scalars for TensorBoard, too')
    add('--show', action='store_true', help='open the plot in a window at the end')
    add('--data-dir', type=folder, default=ROOT / 'MNIST_data', metavar='DIR',
        help="folder of MNIST's four files (default: MNIST_data)")
    add('--results-dir', type=folder, default=ROOT / 'results', metavar='DIR',
        help="folder of a run's files (default: results)")
    add('--checkpoint-dir', type=folder, metavar='DIR', help='folder of checkpoints (default: .checkpoints in the '
        'results folder)')
    return parser


def parse(parser, script):
    """The command line of the script at path script, an argparse namespace; what contradicts itself is refused."""
    given = parser.parse_args()
    if given.resume is not None and given.name is not None:
        parser.error('--name is for a new run: --resume takes a name itself')
    if given.resume is None and given.name is None:
        try:
            given.name = _name(re.sub(r'[^\w.+=-]', '-', script.stem))
        except argparse.ArgumentTypeError as error:
            parser.error(f'{error}: give a --name')
    if given.resume is not None and given.probe:
        parser.error('--probe looks at a network before training: it goes with no --resume')
    if given.show and not records.can_show():
        parser.error('--show: no window can be opened here; the plot is saved beside the CSV in any case')
    return given


def check(parser, options):
    """Refuse options, a dict of those that a record keeps, that do not go together."""
    if options['batch_size'] > options['train_images']:
        parser.error(f'--batch-size {options["batch_size"]} is more than --train-images {options["train_images"]}: '
                     'give a smaller --batch-size')


def between(low, high):
    """An argparse type: a whole number from low to high."""
    def number(text):
        if not re.fullmatch(r'-?\d{1,18}', text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {low} to {high}')
        return int(text)
    return number


def _name(text):
    if len(text.encode()) > 200:
        raise argparse.ArgumentTypeError(f'{text[:20]!r}... is too long for a name')
    if not re.fullmatch(r'\w[\w.+=-]*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a name: letters, digits and . _ - + = make one')
    if re.fullmatch('reference|compare-accuracy|compare-loss|.*-probe', text):
        raise argparse.ArgumentTypeError(f'{text!r} is taken by other files here')
    return text


def folder(text):
    """An argparse type: the path of a folder, which may be one yet to be made."""
    if not text:
        raise argparse.ArgumentTypeError("'' is not a folder")
    path = Path(text)
    try:
        nearest = next(parent for parent in [path, *path.absolute().parents] if os.path.lexists(parent))
        if not nearest.is_dir():
            raise argparse.ArgumentTypeError(f'{nearest} is not a folder')
        os.lstat(path)
    except FileNotFoundError:           # it will be made
        pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{text[:50]}: {error.strerror}') from None
    return path


def shown(path):
    """A path as the user would type it."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def argv():
    """The command line's arguments, of absolute paths the last part alone."""
    return [re.sub(r'^(--[\w-]+=)?/.*/(?=[^/])', r'\1', argument) for argument in sys.argv[1:]]
