"""The strict reader refuses each hostile file by the check that is meant for it."""

import re
from typing import TYPE_CHECKING

import pytest

from lilliput import artifact
from lilliput.errors import ArtifactError

if TYPE_CHECKING:
    from tests.hostile_files import HostileFile


def test_good_file_is_accepted(good_file: bytes) -> None:
    artifact.from_bytes(good_file, "good.lil")


def test_hostile_file_is_refused(hostile_file: "HostileFile") -> None:
    with pytest.raises(ArtifactError) as caught:
        artifact.from_bytes(hostile_file.data, "hostile.lil")
    message = str(caught.value)
    assert message.startswith("hostile.lil: ")
    assert re.search(hostile_file.message, message), message
    assert "\n" not in message
