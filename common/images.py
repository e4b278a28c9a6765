"""Upscaling: MNIST's 28x28 digits to the 227x227 that AlexNet takes."""
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
        raise ImportError(
            f'cv2 cannot be imported ({cv2_error}): install the libraries it wants (on Debian and Ubuntu: '
            'apt install libgl1 libglib2.0-0), or use the cv2 that wants none: '
            'pip uninstall -y opencv-python; pip install opencv-python-headless')
    images = np.reshape(batch_xs, [batch_xs.shape[0], 28, 28])
    scaled = np.empty([len(images), 227, 227, 1], np.float32)
    for img, out in zip(images, scaled, strict=True):
        out[..., 0] = cv2.resize(img, (227, 227))
    return scaled
