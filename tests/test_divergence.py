"""A loss that is not finite: why, and what a run tells and records of it."""
import json

import numpy as np
import pytest
from conftest import SMALL, last_line, read_json

from common.divergence import describe, explain


def test_explain_tells_the_formula_from_an_overflow():
    y = np.eye(10)[[3, 4, 5]]
    output = np.zeros((3, 10), np.float32)
    output[0, 3], output[1, 9] = 120, 200           # right and wrong, both with a gap that underflows
    y_output = np.exp(output - output.max(1, keepdims=True))
    y_output[y_output < 1e-38] = 0
    found = explain('manual', output, y_output, y)
    assert found == {'cause': 'loss formula', 'images': 3, 'largest_logit_gap': 200, 'zero_probabilities': 18,
                     'zero_probabilities_of_labels': 1, 'images_with_zeros': 2, 'of_these_right': 1}
    assert describe(found) == (
        'the loss formula. All logits are finite, but the largest gap between two of an image is 200, so that 18 '
        'softmax probabilities of 2 of 3 images underflowed to 0, and 0 * log(0) is nan. 1 of those images were '
        'classified right; --loss stable cannot underflow')
    output[2, 0] = np.inf
    for method in ('manual', 'stable'):
        found = explain(method, output, y_output, y)
        assert found == {'cause': 'overflow', 'images': 3, 'images_with_non_finite_logits': 1}
    assert describe(found) == 'overflow. The logits of 1 of 3 images are not finite'


def test_explain_where_only_a_label_underflows():
    """1 * log(0): the loss is inf."""
    output = np.zeros((1, 10), np.float32)
    output[0, 0] = -120
    y_output = np.exp(output) / 9
    y_output[0, 0] = 0
    text = describe(explain('manual', output, y_output, np.eye(10)[[0]]))
    assert ' so that 1 softmax probabilities of 1 of 1 images underflowed to 0, and log(0) is -inf. 0 of ' in text
    text = describe(explain('manual', output, y_output, np.eye(10)[[1]]))
    assert ' and 0 * log(0) is nan. ' in text


def test_explain_beyond_float32():
    """Finite logits whose gap and loss are not in float32's range."""
    output = np.float32([[3e38, -3e38] + [0] * 8])
    found = explain('manual', output, np.float32([[1] + [0] * 9]), np.eye(10)[[1]])
    assert found['largest_logit_gap'] == pytest.approx(6e38) and json.dumps(found, allow_nan=False)
    found = explain('stable', output, np.float32([[1] + [0] * 9]), np.eye(10)[[1]])
    assert describe(found) == 'overflow. All logits are finite, but the loss is beyond float32'


@pytest.mark.slow
def test_overflow_is_told_from_the_formula_in_a_real_run(run, tmp_path):
    """Experiment 1 without the underflow, at full size: its first step sends the weights beyond float32."""
    status, _, stderr = run('alexnet1', '--epochs', 1, '--train-images', 12, '--batch-size', 4, '--test-images', 10,
                            '--loss', 'stable')
    assert status == 0, stderr
    found = read_json(tmp_path / 'results/alexnet1.json')['divergence']
    assert found['cause'] == 'overflow' and found['images_with_non_finite_logits'] > 0
    assert 'Cause: overflow. The logits of ' in stderr


def test_stop_on_nan(narrow, run, tmp_path):
    script = narrow('alexnet1', dense=4096)
    status, stdout, stderr = run(script, '--epochs', 3, *SMALL, '--stop-on-nan')
    assert status == 0 and stdout == '' and 'Cause: the loss formula' in stderr
    found = read_json(tmp_path / 'results/alexnet1.json')
    assert found['status'] == 'stopped' and found['epochs'] == [] and found['divergence']['stopped'] is True
    assert last_line(stderr) == 'alexnet1.py: done; results/alexnet1.json and .log', 'there is nothing to draw'
    assert (found['divergence']['epoch'], found['divergence']['iteration']) == (1, 0)
    for given in ['alexnet1'], ['alexnet1', '--epochs', 4], []:
        status, _, stderr = run(script, '--resume', *given)
        assert status == 1 and last_line(stderr).startswith(
            'alexnet1.py: alexnet1 met a training loss that is not' if given else 'alexnet1.py: there is no unfinished')


@pytest.mark.slow
def test_stop_on_nan_when_resumed(narrow, run, tmp_path):
    """It is refused where the weights are nan already."""
    script = narrow('alexnet1', dense=4096)
    assert run(script, '--epochs', 1, *SMALL)[0] == 0
    status, stdout, stderr = run(script, '--resume', 'alexnet1', '--epochs', 2, '--stop-on-nan')
    assert status == 1 and stdout == ''
    assert last_line(stderr).startswith('alexnet1.py: alexnet1 met a training loss that is not finite')
    assert run(script, '--resume', 'alexnet1', '--epochs', 2)[0] == 0


@pytest.mark.slow
def test_a_nan_in_an_epoch_that_is_trained_again(narrow, run, tmp_path):
    """It is void, and no reason to refuse --stop-on-nan."""
    script, path = narrow('alexnet1', dense=4096), tmp_path / 'results/alexnet1.json'
    assert run(script, '--epochs', 1, *SMALL)[0] == 0
    found = read_json(path) | {'status': 'running', 'epochs': []}     # as if killed in its first epoch
    found['divergence']['iteration'] = 3
    path.write_text(json.dumps(found))
    for file in (tmp_path / 'results/.checkpoints/alexnet1').iterdir():
        file.unlink()
    status, _, stderr = run(script, '--resume', '--stop-on-nan')
    assert status == 0, stderr
    found = read_json(path)['divergence']
    assert found['iteration'] == 0 and found['stopped'] is True


def test_training_accuracy_before_the_nan(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[('learning_rate = 1e-4', 'learning_rate = 1e6')])
    status, stdout, stderr = run(script, '--epochs', 1, *SMALL)
    assert status == 0, stderr
    found = read_json(tmp_path / 'results/alexnet4.json')['divergence']
    before = stdout.splitlines()[found['iteration'] - 1].rpartition(' ')[2]
    assert found['iteration'] > 0 and found['training_accuracy_before'] == float(before)
    assert f'Training accuracy before: {float(before):.3f}' in stderr


@pytest.mark.parametrize('change, told', [
    (('run.epoch_done(loss_val', "run.epoch_done(loss_val * float('nan')"), 'Every weight is finite'),
    (('learning_rate = 1e-4', 'learning_rate = 1e38'), 'After the last step, some weight is not'),
])
def test_a_test_loss_that_alone_is_nan_is_no_divergence(change, told, narrow, run, tmp_path):
    status, _, stderr = run(narrow('alexnet4', replace=[change]), '--epochs', 1, *SMALL, '--train-images', 4)
    assert status == 0 and f'the test loss of epoch 1 is nan, but every training loss was finite. {told}' in stderr
    record = read_json(tmp_path / 'results/alexnet4.json')
    assert record['divergence'] is None and record['epochs'][0]['test_loss_alone_not_finite'] is True
