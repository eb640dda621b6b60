"""`lil compress`: a checkpoint and unlabelled texts or images in, one small file out.

`run` has the stages, `subject` what they ask of a model and its data, `texts` and `images` the answers.
"""

from lilliput.compress_checkpoint.run import compress
from lilliput.compress_checkpoint.subject import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "compress", "read_checkpoint"]
