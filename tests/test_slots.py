"""experiments/slots.py: what a text leaves out, gets wrong or makes up."""

import pytest

from experiments.slots import find_faults

RECORD = "name : The Mill | Type : pub | price : cheap | family friendly : no | near : Café Rouge"
PLACES = {"The Mill", "Café Rouge", "Café Sicilia"}


@pytest.mark.parametrize(
    "text, faults",
    [
        ("The Mill is a cheap pub near Café Rouge. It is not family-friendly.", []),
        ("the mill, an adults only bar near café rouge, is under £20", []),
        ("The Mill is near Café Rouge.", ["missing Type", "missing price", "missing family friendly"]),
        ("The Mill is a cheap, family friendly pub near Café Rouge.", ["wrong family friendly"]),
        ("The Mill is a cheap pub and no family friendly coffee shop near Café Rouge.", ["wrong Type"]),
        ("The Mill is an expensive pub near Café Rouge, not family friendly.", ["wrong price"]),
        (
            "The Mill is a cheap Chinese pub near Café Sicilia, not family friendly.",
            ["missing near", "invented Café Sicilia", "invented food"],
        ),
        ("The Mill, by the river, is a cheap pub near Café Rouge. Not child friendly.", ["invented area"]),
    ],
)
def test_each_kind_of_fault_is_found(text, faults):
    assert [" ".join(fault) for fault in find_faults(RECORD, text, PLACES)] == faults
