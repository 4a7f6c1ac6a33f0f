"""Settings for the whole suite, before torch is imported."""

import os

# Threads that spin while they wait make short operations crawl on a machine that is doing something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where there is no GPU the CUDA kernel is interpreted; Triton asks when it is first imported.
if not os.path.exists("/proc/driver/nvidia"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
