"""`ImageSession`: a model that classifies images, from numpy arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.errors import InputError
from lilliput.program.mathfn import softmax
from lilliput.runtime._lil import Model
from lilliput.runtime.session import Session

CHUNK = 16  # images a thread and call into C, so that Ctrl-C is heard soon


class ImageShape(NamedTuple):
    """What one image is: pixels, rows and columns of them, and 1 (grey) or 3 (colour) channels, for instance."""

    height: int
    width: int
    channels: int


class ImageSession(Session):
    """An opened image model. Threads of a call of `run` share the images of a batch, or the work of each image where
    there are fewer images than threads."""

    def _prepare(self, model: Model) -> None:
        self._image = ImageShape(**{side: self._metadata["image"][side] for side in ImageShape._fields})

    @property
    def image(self) -> ImageShape:
        """The shape of an image that the model takes."""
        return self._image

    def run(self, images: ArrayLike) -> NDArray[np.float32]:
        """Run one image or a batch.

        Args:
            images: uint8 pixels 0..255, [height, width, channels] or [n, height, width, channels]; of a model with one
                channel also [height, width] or [n, height, width]. Not contiguous ones are copied.

        Returns:
            The outputs (logits): float32 [classes] for one image, [n, classes] for a batch, which may be empty.

        Raises:
            InputError: another dtype or shape, or the session is closed.
        """
        batch, is_batch = self._batch(images)
        outputs = np.empty((len(batch), self.num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            chunk = CHUNK * self.num_threads
            for start in range(0, len(batch), chunk):
                rows = slice(start, start + chunk)
                model.run(self._arena, batch[rows], outputs[rows], self._threads)
            self._opened()  # nobody has changed the weights meanwhile
            del model  # close() must find no one else holding on to the file
        return outputs if is_batch else outputs[0]

    def profile(self, image: ArrayLike, repeats: int = 1) -> NDArray[np.int64]:
        """Time each op of the program, `repeats` times: nanoseconds, int64 [repeats, ops].

        Args:
            image: one image, as `run` takes it.
            repeats: how many runs, at least 1.

        Raises:
            InputError: another dtype or shape, more than one image, no repeats, or the session is closed.
        """
        batch, _ = self._batch(image)
        if len(batch) != 1 or repeats < 1:
            raise InputError(
                f"{self._name}: a profile is of 1 image and at least 1 repeat, not {len(batch)}, {repeats}"
            )
        images = np.repeat(batch, repeats, axis=0)
        outputs = np.empty((repeats, self.num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            times = np.empty((repeats, model.num_ops), np.int64)
            model.profile(self._arena, images, outputs, times, self._threads)
            self._opened()
        return times

    def predict(self, images: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Classify one image or a batch, as `run` takes it; one image is a batch of one here.

        Returns:
            The likeliest class (its name: `labels`), int [n], and the probabilities, float32 [n, classes].
        """
        outputs = np.atleast_2d(self.run(images))
        return outputs.argmax(axis=1), softmax(outputs)

    def _golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Inputs [n, height, width, channels] and outputs [n, classes] of the golden examples."""
        with self._lock:
            model = self._opened()
            inputs = np.frombuffer(model.golden_inputs, np.uint8).reshape(model.num_golden, *self.image)
            return inputs, self._golden_outputs(model)

    def _batch(self, images: ArrayLike) -> tuple[NDArray[np.uint8], bool]:
        """The images as contiguous rows [n, pixels], and whether they were a batch."""
        height, width, channels = self.image
        try:
            array = np.asarray(images)
        except ValueError as error:
            raise InputError(f"{self._name}: the images are no array ({error}); {self._allowed()}") from None
        if array.dtype != np.uint8:
            raise InputError(f"{self._name}: the images are {array.dtype}; {self._allowed()}")
        shape = array.shape
        if channels == 1 and shape[-2:] == (height, width) and array.ndim in (2, 3):
            shape = (*shape, 1)
        if shape[-3:] != (height, width, channels) or len(shape) not in (3, 4):
            raise InputError(f"{self._name}: the images have shape {array.shape}; {self._allowed()}")
        count = shape[0] if len(shape) == 4 else 1
        return np.ascontiguousarray(array).reshape(count, height * width * channels), len(shape) == 4

    def _allowed(self) -> str:
        height, width, channels = self.image
        return f"must be uint8 pixels 0..255, {height} x {width} x {channels} or a batch of these"
