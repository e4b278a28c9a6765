"""--precision: what a run stores in which type, and what it says."""
import numpy as np
import pytest
from conftest import ROOT

from common import machine, ops
from common.run import Run

import tensorflow.compat.v1 as tf  # isort: skip

SMALL = ['--epochs', 1, '--train-images', 20, '--batch-size', 10, '--test-images', 10, '--seed', 1]


@pytest.mark.slow
def test_bfloat16_from_the_command_line(narrow, run, tmp_path, monkeypatch):
    """The second run is in bfloat16, the third on a CPU without instructions for it."""
    if not ops.can_use_bfloat16():
        pytest.skip('no bfloat16 on this CPU')
    session, stored = Run.session, []

    def watched(self, config):
        fused = [op for op in tf.get_default_graph().get_operations() if op.type.endswith('PartitionedCall')
                 and not op.name.startswith('gradients')]
        stored.append({op.inputs[0].dtype.name for op in fused})
        return session(self, config)
    monkeypatch.setattr(Run, 'session', watched)
    script, losses = narrow('alexnet2'), []
    for precision, native in ('float32', True), ('bfloat16', True), ('bfloat16', False):
        monkeypatch.setattr('common.machine.native_bfloat16', lambda native=native: native)
        status, _, stderr = run(script, *SMALL, '--precision', precision, '--name', f'run{len(losses)}',
                                real=True)
        assert status == 0 and f'loss manual, {precision}, seed 1, on ' in stderr, stderr
        assert stored.pop() == {precision}
        assert ('this CPU has no instructions for bfloat16: float32 would be faster' in stderr) == (not native)
        losses.append(float((tmp_path / f'results/run{len(losses)}.csv').read_text().split(',')[0]))
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1] == losses[2]


@pytest.mark.slow
def test_without_onednn(narrow, start, tmp_path):
    """Its rewrite does not happen then, and the run says so."""
    process = start(narrow('alexnet4'), *SMALL, '--precision', 'bfloat16', env={'TF_ENABLE_ONEDNN_OPTS': '0'})
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0 and 'loss manual, float32, seed 1, on ' in stderr, stderr
    assert 'bfloat16 is not available: this TensorFlow cannot use it on this CPU. The run uses float32' in stderr


@pytest.mark.slow
def test_a_tensorflow_without_xla(narrow, run, tmp_path, monkeypatch):
    """Its own normalizations are used then, and the run says so once. The figures are the same but for rounding."""
    def raises(*_, **__):
        raise tf.errors.UnimplementedError(None, None, 'XLA is not linked in')
    rows = []
    for script in 'alexnet4', 'alexnet6':
        for fused in True, False:
            with monkeypatch.context() as patch:
                if not fused:
                    patch.setattr(ops, '_fused', raises)
                ops._compiles.cache_clear()
                status, _, stderr = run(narrow(script), *SMALL, '--name', f'{script}-{fused}', real=True)
            assert status == 0, stderr
            told = 'this TensorFlow has no XLA: its own normalizations are used, which are slower'
            assert stderr.count(told) == (not fused)
            rows.append([float(x) for x in (tmp_path / f'results/{script}-{fused}.csv').read_text().split(',')])
    ops._compiles.cache_clear()
    np.testing.assert_allclose(rows[::2], rows[1::2], rtol=1e-3)


@pytest.mark.slow
def test_memory_of_a_whole_run(start, tmp_path):
    """Batch 200, 1000 test images, and the checkpoint: 5 GiB where the images are evaluated at once.

    conv2 to conv4 have few channels here. They take most of the time, and little of the memory.
    """
    source = (ROOT / 'alexnet2.py').read_text().replace('384', '8').replace('96, 256', '96, 8')
    source = source.replace('3, 3, 256', '3, 3, 8').replace("'conv2': tf.Variable(tf.truncated_normal([256",
                                                            "'conv2': tf.Variable(tf.truncated_normal([8")
    (tmp_path / 'alexnet2.py').write_text(source)
    prelude = """
from common.run import Run
done = Run.epoch_done
def epoch_done(*arguments):
    done(*arguments)
    status = dict(line.split(':') for line in open('/proc/self/status'))    # ru_maxrss would begin at our parent's
    print('peak', status['VmHWM'].split()[0])
Run.epoch_done = epoch_done
"""
    process = start(tmp_path / 'alexnet2.py', '--epochs', 1, '--train-images', 200, '--precision',
                    'bfloat16' if machine.native_bfloat16() else 'float32', prelude=prelude)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert 1 < int(stdout.split()[-1]) / 2**20 < 3.5
