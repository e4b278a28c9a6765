"""What a sweep costs beside its runs: a stub of a script, on a Ray cluster of one-CPU nodes on this machine.

    python tests/sweep_overhead.py NODES RUNS

Prints a line for results/reference/sweep.json, behind common/README.md.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent
STUB = '''
import json, sys, time
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
results, name = Path(given['--results-dir']), given.get('--name') or given['--resume']
checkpoints = results / '.checkpoints' / name
checkpoints.mkdir(parents=True, exist_ok=True)
(results / f'{name}.csv').unlink(missing_ok=True)
record = {'script': 'stub.py', 'source': '', 'seed': int(given['--seed']), 'precision': 'float32', 'common': {},
          'options': {'epochs': 2, 'train_images': 200, 'batch_size': 200, 'seed': int(given['--seed'])},
          'start': '', 'epochs': [], 'divergence': None, 'resumed': []}
for epoch in 1, 2:
    time.sleep(1)
    with (results / f'{name}.csv').open('a') as file:
        file.write('2302.0,0.1\\n')
    record['epochs'].append({'seconds': 1})
    record['status'] = 'running' if epoch == 1 else 'complete'
    (results / f'{name}.json').write_text(json.dumps(record))
    (checkpoints / 'checkpoint').write_text(f'model_checkpoint_path: "step-{epoch}"')
'''


def main():
    """Print how long the sweep took, with the time that its runs had to take."""
    nodes, runs = map(int, sys.argv[1:])
    os.environ |= {'RAY_USAGE_STATS_ENABLED': '0', 'PYTHONPATH': str(ROOT)}
    node = {'num_cpus': 1, 'object_store_memory': 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'stub.py').write_text(STUB)
        start = time.monotonic()
        subprocess.run([sys.executable, '-m', 'common.sweep', 'stub.py', '--address', cluster.address, '--storage',
                        f'{folder}/storage', '--results-dir', 'results', '--seeds', *map(str, range(runs))],
                       cwd=folder, check=True)
        seconds = time.monotonic() - start
    cluster.shutdown()
    print(json.dumps({'nodes': nodes, 'runs': runs, 'seconds_a_run': 2, 'seconds': round(seconds, 1)}))


if __name__ == '__main__':
    main()
