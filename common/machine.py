"""What a run is made with, besides its script: versions, hardware, memory."""
import contextlib
import hashlib
import math
import os
import platform
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow.compat.v1 as tf

from common.scripts import ROOT


def environment():
    """Versions, the sha256 of each file of common/, and hardware: a dict, as a record holds it."""
    import cv2
    return {
        'common': {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                   for path in sorted((ROOT / 'common').glob('*.py'))},
        'versions': {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__,
                     'opencv': cv2.__version__, 'matplotlib': matplotlib.__version__},
        'hardware': _hardware(),
    }


def memory():
    """The machine's memory in bytes, or what a container leaves of it; inf where the system does not tell."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    with contextlib.suppress(OSError, ValueError):      # ValueError: 'max', for no limit
        limits.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return min(limits)


def native_bfloat16():
    """Whether the CPU has instructions for bfloat16, as far as Linux tells; elsewhere, True."""
    try:
        flags = set(Path('/proc/cpuinfo').read_text().split())
    except OSError:
        return True
    return bool(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})


def _hardware():
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'a GPU')
    cpu = {}
    with contextlib.suppress(OSError):
        pairs = (line.split(':', 1) for line in Path('/proc/cpuinfo').read_text().splitlines() if ':' in line)
        cpu = {key.strip(): value.strip() for key, value in pairs}
    name = cpu.get('model name') or platform.processor() or platform.machine()
    if 'cpu family' in cpu:     # virtual machines give one name to CPUs that differ by a factor of two in speed
        name += f' (family {cpu["cpu family"]}, model {cpu["model"]})'
    # Of a shared machine, a container or a cluster's job has only some.
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{name}, {count} CPUs'
