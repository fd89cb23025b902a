from collections.abc import Callable

import numpy as np
import pytest

from hansa.data.table import Table


@pytest.fixture
def same() -> Callable[[Table, Table], None]:
    def check(one: Table, other: Table) -> None:
        assert one.schema() == other.schema()
        for name in one.names:
            np.testing.assert_array_equal(one.column(name), other.column(name))

    return check
