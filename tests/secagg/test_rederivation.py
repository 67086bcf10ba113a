"""What was recorded of a window gives its sum again, whatever else stands beside it."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.messages.wire import DeviceId
from echelon.secagg.faults import WindowFailed
from echelon.secagg.rederivation import rederive
from tests.secagg.federation import Window, context_for, names, vector_of

D1 = names(2)[1]


def test_finish_without_the_included_uploads_fails() -> None:
    first = Window(context_for(names(3)))
    first.run()
    without = [
        (device, found)
        for device, found in first.inputs
        if not (device == "d001" and isinstance(found, np.ndarray))
    ]
    with pytest.raises(WindowFailed, match="uploads are not there"):
        rederive(first.context, first.roster, first.decisions, without)


def test_what_was_refused_is_no_part_of_the_sum_again() -> None:
    first = Window(context_for(names(4)))
    result = first.run()
    device = first.devices[0]
    noise = [
        (device, vector_of("noise")),
        (DeviceId("zz"), vector_of("zz")),
        (device, first.clients[D1].advertise()),
    ]
    again = rederive(first.context, first.roster, first.decisions, [*noise, *first.inputs, *first.inputs])
    assert np.array_equal(again.total, result.total)
