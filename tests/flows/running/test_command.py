"""Values that the command lines of the flows take."""

from argparse import ArgumentTypeError

import pytest

from flows.running.command import value_of


def test_settings_on_the_command_line() -> None:
    assert value_of("risk.alpha=0.2") == ("risk.alpha", 0.2)
    assert value_of("seeds=[1, 2]") == ("seeds", [1, 2])
    assert value_of("data.path=a=b") == ("data.path", "a=b")
    with pytest.raises(ArgumentTypeError, match="expected KEY=VALUE"):
        value_of("risk.alpha")


@pytest.mark.parametrize("value", ["[0.2", "2024-13-45", "9" * 5000, "[" * 1001, "!!int ''"], ids=str.__len__)
def test_settings_that_are_no_values(value: str) -> None:
    with pytest.raises(ArgumentTypeError, match="the value is not readable as YAML") as caught:
        value_of(f"risk.alpha={value}")
    assert len(str(caught.value)) < 200
