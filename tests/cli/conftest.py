"""What tests of several verbs share."""

import pytest


@pytest.fixture
def nets(request, tmp_path):
    """A file of the user's own with the networks in the test module's NETS."""
    path = tmp_path / "nets.py"
    path.write_text(request.module.NETS)
    return path
