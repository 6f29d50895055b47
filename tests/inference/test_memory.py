import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.inference.memory import DeviceMemory, batch_that_fits, chunk_of, largest_batch
from tests.models import GcContent

SPEC = replace(GcContent.spec, batch_size=4, memory_mib=100, batch_grows=True)


@pytest.mark.parametrize(
    ("room", "batch"), [(50, 4), (199, 4), (200, 8), (450, 16), (1599, 32), (1600, 64), (math.inf, 256)]
)
def test_a_batch_doubles_while_the_device_has_room_for_it(room, batch):
    assert batch_that_fits(SPEC, most=4096, room_mib=room) == batch


def test_a_batch_is_no_larger_than_a_chunk():
    assert batch_that_fits(SPEC, most=63, room_mib=math.inf) == 32


@pytest.mark.parametrize(
    ("batch", "most", "cases"), [(1, 1024, 256), (32, 1024, 256), (128, 1024, 1024), (256, 1024, 1024), (128, 7, 7)]
)
def test_a_chunk_holds_several_batches_so_that_reading_can_go_on_beside_the_device(batch, most, cases):
    assert chunk_of(replace(SPEC, batch_size=batch), most) == cases


def test_a_model_that_does_not_ask_for_more_gets_the_batch_it_declares():
    assert batch_that_fits(replace(SPEC, batch_grows=False), most=4096, room_mib=math.inf) == 4


@given(st.integers(1, 300), st.integers(1, 4096), st.integers(0, 100_000))
def test_whatever_batch_fits_divides_the_largest_one_so_that_chunks_are_whole_batches(declared, chunk, room):
    spec = replace(SPEC, batch_size=declared)

    batch = batch_that_fits(spec, chunk, room)

    assert largest_batch(spec, chunk) % batch == 0
    assert batch % declared == 0


def test_the_limit_is_shared_by_the_models_that_are_loaded():
    memory = DeviceMemory("cpu", limit_mib=250)

    assert memory.most_mib == 250
    assert memory.room_mib([SPEC, SPEC]) == 50


def test_a_cpu_without_a_limit_has_room_for_everything():
    memory = DeviceMemory("cpu", limit_mib=0)

    assert memory.most_mib == math.inf
    assert memory.room_mib([SPEC] * 1000) == math.inf
