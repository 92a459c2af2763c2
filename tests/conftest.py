"""What hypothesis draws for tests of properties.

The same each time, wherever they run, unless other profiles are asked for: what has passed before it lands passes
afterwards, and a failure is there again. `--hypothesis-profile fresh` draws anew, to find what nobody has seen yet.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

ON_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

settings.register_profile("fresh", ON_ANY_MACHINE)
settings.register_profile("same", ON_ANY_MACHINE, derandomize=True, database=None, print_blob=True)
settings.load_profile("same")

# Hypothesis likes to draw constants of the modules that happen to be loaded, which tests before may have done.
pytest.MonkeyPatch().setattr(providers, "_get_local_constants", Constants)
