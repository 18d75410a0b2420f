from __future__ import annotations

import os
import signal
import threading

import pytest

from sae.training.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def _usual_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _press():
    os.kill(os.getpid(), signal.SIGINT)
    signal.getsignal(signal.SIGINT)  # the handler runs before the next line


def test_an_interrupt_waits_until_it_is_asked_for():
    passed = False
    with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupts:
        interrupts.check()
        _press()
        passed = True
        interrupts.check()
    assert passed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_one_does_not_wait():
    passed = False
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        _press()
        passed = True
        _press()
        passed = False
    assert passed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_nobody_asked_for_is_raised_in_the_end():
    finished = False
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        _press()
        finished = True
    assert finished


def test_after_another_exception_handlers_are_as_before():
    with pytest.raises(OSError, match="full"), interrupts_held():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_stay():
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with interrupts_held() as interrupts:
        _press()
        interrupts.check()
    assert heard == [1]


def test_a_request_to_end_that_raises_keyboard_interrupt_waits_too():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.came


def test_in_another_thread_nothing_is_done():
    found = []

    def work():
        with interrupts_held() as interrupts:
            found.append(signal.getsignal(signal.SIGINT))
            interrupts.check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
