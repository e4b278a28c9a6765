"""The command line that all seven scripts share."""
import argparse
import os
import re
import secrets
import shlex
import sys
from pathlib import Path

from common import plots
from common.scripts import ROOT

TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
DATA_DIR, RESULTS_DIR = ROOT / 'MNIST_data', ROOT / 'results'


def defaults(training_epoch=50, batch_size=200):
    """The options that a record keeps, a dict, with the values that they have where they are not given."""
    return {'epochs': training_epoch, 'train_images': TRAIN_IMAGES, 'test_images': 1000, 'batch_size': batch_size,
            'seed': None, 'loss': 'manual', 'precision': 'float32', 'log_every': 1}


def parser(program, description, defaults):
    """The argparse parser of a script.

    An option that a record keeps has no default here, so that --resume can tell what was given.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, allow_abbrev=False,
        epilog='Exit status: 0 done, also where the loss became nan; 2 a bad command line; 128 + its number after a '
               'signal (130 for Ctrl-C); 1 anything else.')
    add = parser.add_argument

    def add_recorded(option, help, **keywords):
        default = defaults[option.strip('-').replace('-', '_')]
        add(option, default=argparse.SUPPRESS, help=f'{help} (default: {default or "drawn at random"})', **keywords)
    add_recorded('--epochs', 'train N times on all training images', type=between(1, 1_000_000), metavar='N')
    add_recorded('--train-images', 'train on the first N images', type=between(1, TRAIN_IMAGES), metavar='N')
    add_recorded('--test-images', 'test on the first N images', type=between(1, TEST_IMAGES), metavar='N')
    add_recorded('--batch-size', 'images in a batch', type=between(1, TRAIN_IMAGES), metavar='N')
    add_recorded('--seed', 'for variables, dropout and data order', type=between(0, 2**32 - 1), metavar='S')
    add_recorded('--loss', "manual: the article's method 1, a sum over the batch; builtin: its method 2 as printed, a "
                 "mean; stable: method 2 summed, which is manual's value without its underflow",
                 choices=['manual', 'builtin', 'stable'])
    add_recorded('--precision', 'bfloat16: convolutions and matrix products in bfloat16, on a CPU that has '
                 'instructions for it', choices=['float32', 'bfloat16'])
    add_recorded('--log-every', 'measure and print the training accuracy every N-th iteration',
                 type=between(1, 1_000_000), metavar='N')
    add('--name', type=_name, metavar='NAME', help="the run's name (default: the script's)")
    add('--resume', nargs='?', const=True, type=_name, metavar='NAME',
        help="go on with that run, or with this script's newest unfinished one")
    add('--stop-on-nan', action='store_true', help='end at the first training loss that is not finite')
    add('--tensorboard', action='store_true', help='write scalars for TensorBoard, too')
    add('--show', action='store_true', help='open the plot in a window at the end')
    add('--data-dir', type=folder, default=DATA_DIR, metavar='DIR',
        help="folder of MNIST's four files (default: MNIST_data)")
    add('--results-dir', type=folder, default=RESULTS_DIR, metavar='DIR',
        help="folder of a run's files (default: results)")
    return parser


def parse(parser, script):
    """The command line of the script at path `script`, a namespace. What contradicts itself is refused."""
    given = parser.parse_args()
    if given.resume is not None and given.name is not None:
        parser.error('--name is for a new run: --resume takes a name itself')
    if given.resume is None and given.name is None:
        try:
            given.name = _name(name_of(script))
        except argparse.ArgumentTypeError as error:
            parser.error(f'{error}: give a --name')
    if given.show and not plots.can_show():
        parser.error('--show: no window can be opened here; the plot is saved beside the CSV in any case')
    return given


def name_of(script):
    """The name that a run of the script at path `script` has, unless another is given."""
    return re.sub(r'[^\w.+=-]', '-', script.stem)


def chosen(parser, given, defaults):
    """The options of a new run, a dict: those given, the defaults, and a seed. What does not fit is refused."""
    options = defaults | {name: getattr(given, name) for name in defaults if hasattr(given, name)}
    check(parser, options)
    if options['seed'] is None:
        options['seed'] = secrets.randbelow(2**31)
    return options


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
    if re.fullmatch('reference|compare-(accuracy|loss|signal)|.*-probe', text):
        raise argparse.ArgumentTypeError(f'{text!r} is taken by other files here')
    return text


def folder(text):
    """An argparse type: the path of a folder. It need not exist yet."""
    if not text:
        raise argparse.ArgumentTypeError("'' is not a folder")
    path = Path(text)
    try:
        nearest = next(parent for parent in [path, *path.absolute().parents] if os.path.lexists(parent))
        if not nearest.is_dir():
            raise argparse.ArgumentTypeError(f'{nearest} is not a folder')
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
    """The command line's arguments. An absolute path is cut to its last part."""
    return [re.sub(r'^(--[\w-]+=)?/.*/(?=[^/])', r'\1', argument) for argument in sys.argv[1:]]


def resume_command(given, name):
    """The command that goes on with the run `name`, which was started with the namespace `given`."""
    folders = [word for option, default in (('data_dir', DATA_DIR), ('results_dir', RESULTS_DIR))
               if getattr(given, option) != default
               for word in (f'--{option.replace("_", "-")}', str(getattr(given, option)))]
    switches = [f'--{option.replace("_", "-")}' for option in ('stop_on_nan', 'tensorboard', 'show')
                if getattr(given, option)]
    python = str(shown(Path(sys.executable or 'python')))
    return shlex.join([python, sys.argv[0], '--resume', name, *folders, *switches])
