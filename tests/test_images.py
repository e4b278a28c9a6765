"""Upscaling against cv2 and against values worked out by hand; batches upscaled ahead."""
import concurrent.futures
import threading

import cv2
import numpy as np
import pytest

from common import images
from common.images import Feed


def test_one_image_against_cv2():
    batch = np.random.RandomState(0).rand(3, 784).astype(np.float32)
    scaled = images.image_shape_scale(batch)
    assert scaled.shape == (3, 227, 227, 1) and scaled.dtype == np.float32
    assert (scaled[1, :, :, 0] == cv2.resize(batch[1].reshape(28, 28), (227, 227))).all()


def test_corner_against_values_worked_out_by_hand():
    """Bilinear with pixel centres at half: output n lies at (n + 0.5) * 28 / 227 - 0.5 in the input."""
    image = np.zeros((28, 28), np.float32)
    image[0, 0], image[0, 1], image[1, 0], image[1, 1] = 1, 3, 5, 11
    scaled = images.image_shape_scale(image.reshape(1, 784))[0, :, :, 0]
    assert scaled[0, 0] == 1                                            # beyond the first centre: its value
    at = 5.5 * 28 / 227 - 0.5                                           # 0.17841
    assert scaled[0, 5] == pytest.approx(1 + 2 * at, abs=1e-5)          # along the upper edge
    assert scaled[5, 0] == pytest.approx(1 + 4 * at, abs=1e-5)          # along the left edge
    assert scaled[5, 5] == pytest.approx(1 + 2 * at + 4 * at + 4 * at * at, abs=1e-5)


def test_missing_library_names_the_package(monkeypatch):
    monkeypatch.setattr(images, 'cv2', None)
    monkeypatch.setattr(images, 'cv2_error', ImportError('libGL.so.1: cannot open shared object file'), raising=False)
    with pytest.raises(ImportError, match=r'libGL.so.1.*apt install libgl1.*opencv-python-headless'):
        images.image_shape_scale(np.zeros((1, 784), np.float32))


# The feed

class Data:
    """A data set whose k-th batch is all k, and which may fail."""

    def __init__(self, fails_at=None):
        self.served, self.threads, self.fails_at = 0, set(), fails_at

    def next_batch(self, batch_size):
        self.threads.add(threading.current_thread())
        self.served += 1
        if self.served == self.fails_at:
            raise OSError('the disk is gone')
        return np.full([batch_size, 784], self.served, np.float32), np.eye(10)[[self.served] * batch_size]


def test_batches_come_in_order_one_ahead_and_not_one_too_many():
    data = Data()
    with Feed(data, 2, 3) as feed:
        for number in (1, 2, 3):
            batch_xs, batch_ys = feed.next()
            assert batch_xs.shape == (2, 227, 227, 1) and (batch_xs == number).all()
            assert batch_ys.argmax(1).tolist() == [number, number]
            concurrent.futures.wait([feed._coming])
            assert data.served == min(number + 1, 3), 'the next one is there, and no more'
    assert threading.current_thread() not in data.threads
    assert not any(thread.is_alive() for thread in data.threads)


def test_an_error_on_the_thread_is_raised_where_its_batch_is_asked_for():
    data = Data(fails_at=2)
    with pytest.raises(OSError, match='the disk is gone'), Feed(data, 2, 3) as feed:
        feed.next()
        concurrent.futures.wait([feed._coming])
        assert data.served == 2, 'it has happened, and waits'
        feed.next()
    assert not any(thread.is_alive() for thread in data.threads)
