"""What a refused command looks like."""

from __future__ import annotations


def assert_refused(result, *fragments, code=2):
    got, _, err = result
    assert got == code, err
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err, err
