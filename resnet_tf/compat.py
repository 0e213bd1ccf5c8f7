"""What must be said before TensorFlow starts."""

import os
import sys

from common.errors import BadInput

# Keras 3 runs on several frameworks and reads its choice once, at import. A choice that somebody made
# is not changed: it is that of the whole process.
if "keras" in sys.modules:
    chosen = sys.modules["keras"].config.backend()
else:
    chosen = os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or "tensorflow"
if chosen != "tensorflow":
    raise BadInput(
        f"resnet_tf needs Keras on TensorFlow, and here it is on {chosen}; "
        "start Python with KERAS_BACKEND=tensorflow"
    )
# TensorFlow's C++ prints pages of notices to standard error; what fails also raises an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
