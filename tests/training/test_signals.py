"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from moe_jax.training.signals import SIGNALS, StopSignals


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_set_a_flag_and_are_given_back(number, capfd):
    before = [signal.getsignal(n) for n in SIGNALS]
    with StopSignals() as signals:
        assert not signals.stop and signals.name == ""
        os.kill(os.getpid(), number)
        assert signals.stop and signals.name == number.name
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert number.name in capfd.readouterr().err


def test_second_interrupt_is_an_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_another_signal_is_the_first(capfd):
    """Launchers send several signals; only Ctrl-C twice means impatience."""
    with StopSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert signals.name == "SIGTERM"
    assert capfd.readouterr().err.count("saving") == 1


def test_outside_the_main_thread_nothing_changes():
    before = [signal.getsignal(n) for n in SIGNALS]
    seen = []

    def run():
        with StopSignals() as signals:
            seen.append((signals.stop, [signal.getsignal(n) for n in SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
    assert [signal.getsignal(n) for n in SIGNALS] == before
