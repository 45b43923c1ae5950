"""A call in a thread of its own: its result, its failure, its thread."""

import threading

import pytest

from mapek.bpf.apart import apart


def test_the_result_comes_from_a_thread_of_that_name_which_is_gone_then():
    thread = apart("one", threading.current_thread)
    assert thread.name == "one"
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_it_raises_comes_through(kind):
    def fail():
        raise kind("why")

    with pytest.raises(kind, match="why"):
        apart("one", fail)
