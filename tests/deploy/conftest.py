"""What the tests of deploy/ share."""

import pytest

from hansa.cli.boundary import run


@pytest.fixture
def hansa_help(capsys):
    """The help page of a command."""

    def page(*command):
        assert run([*command, "--help"]) == 0
        return capsys.readouterr().out

    return page
