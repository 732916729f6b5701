"""What the tests of sampling share."""

import jax
import pytest


@pytest.fixture
def backend_compiles():
    """A list that grows by one with every program that XLA is asked for."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
