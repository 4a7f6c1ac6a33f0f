"""Settings for the whole suite, before torch is imported."""

import os

# Threads that spin while they wait make short operations crawl on a machine that is doing something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
