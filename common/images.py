"""Upscaling: MNIST's 28x28 digits to the 227x227 that AlexNet takes."""
import concurrent.futures
import sys
import numpy as np

try:
    import cv2
except ImportError as error:
    cv2, cv2_error = None, error


def image_shape_scale(batch_xs):
    """[n, 784] float32 to [n, 227, 227, 1] float32: bilinear, with cv2.resize, as in the article.

    Raises ImportError, naming the package to install, where cv2 cannot be imported.
    """
    if cv2 is None:
        python = sys.executable
        raise ImportError(
            f'cv2 cannot be imported ({cv2_error}): install the libraries it needs (on Debian and Ubuntu: '
            'apt install libgl1 libglib2.0-0), or use the cv2 that needs none: '
            f'{python} -m pip uninstall -y opencv-python; {python} -m pip install opencv-python-headless')
    images = np.reshape(batch_xs, [batch_xs.shape[0], 28, 28])
    scaled = np.empty([len(images), 227, 227, 1], np.float32)
    for img, out in zip(images, scaled, strict=True):
        out[..., 0] = cv2.resize(img, (227, 227))
    return scaled


class Feed:
    """The batches of a run, each upscaled on a thread of its own while the one before it trains.

    A context manager: at its end, the thread ends. count: the batches that will be asked for.
    """

    def __init__(self, data_set, batch_size, count):
        self._data_set, self._batch_size, self._left = data_set, batch_size, count
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._order()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def next(self):
        """The next batch: [batch_size, 227, 227, 1] float32 and [batch_size, 10] float64. Raises what
        went wrong on the thread."""
        batch = self._coming.result()
        self._order()
        return batch

    def _order(self):
        if self._left:
            self._left -= 1
            self._coming = self._thread.submit(self._read)

    def _read(self):
        batch_xs, batch_ys = self._data_set.next_batch(self._batch_size)
        return image_shape_scale(batch_xs), batch_ys
