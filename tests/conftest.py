"""Tests run on the CPU, also on a machine with GPUs: several ranks would not find one each."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
