"""What every test runs under."""

import hypothesis

# Compilation makes a first example slow, and the same examples every time let two runs
# be compared.
hypothesis.settings.register_profile("zfnet_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("zfnet_jax")
