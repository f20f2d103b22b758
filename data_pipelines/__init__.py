"""From scans on disk to batches of numpy arrays. Imports nothing else of this project."""

import os

# Before the first import of TensorFlow, which greets with notes on the processor, since 2.21 past its own log level. Only tf.data
# is used of it here, so nothing is lost without oneDNN.
for _name, _value in {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "GRPC_VERBOSITY": "ERROR"}.items():
    os.environ.setdefault(_name, _value)
