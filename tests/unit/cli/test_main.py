"""What is set up around every command."""

import gc

import pytest

from harvester.cli.main import main


def test_unreachable_objects_are_searched_as_ever_once_the_command_has_begun() -> None:
    gc.collect()
    usual, callbacks = gc.get_threshold(), [*gc.callbacks]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert gc.get_threshold()[0] > usual[0]
    gc.collect()
    assert gc.get_threshold() == usual
    assert gc.callbacks == callbacks
