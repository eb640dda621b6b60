"""`digits`: 1,797 handwritten digits of 8x8 grey pixels, bundled with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""

import numpy as np

from lilliput.data.dataset import Part, Source
from lilliput.errors import DataError


def load_digits() -> Source:
    """The whole set as one part: images uint8 [1797, 8, 8, 1], the 17 grey levels 0..16 spread over 0..255.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("data 'digits' needs scikit-learn, which is missing: pip install 'lilliput[train]'") from None
    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., np.newaxis]
    classes = tuple(str(name) for name in bunch.target_names)
    return Source(classes, Part(images, bunch.target.astype(np.int64)), test=None)
