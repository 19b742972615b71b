"""Settings that every test shares."""

import os
import signal

from hypothesis import HealthCheck, settings

# A slow, shared machine must not turn a passing property into a failure of its deadline.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile(
    "ci", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell starts what it runs in the background with Ctrl-C ignored, and programs pass that on to those that
# they start. The tests send Ctrl-C to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if hasattr(signal, "SIGHUP"):
    # Under nohup it is ignored, and so it would be in every program that the tests start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
