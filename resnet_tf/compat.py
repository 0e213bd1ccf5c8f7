"""What must be said before TensorFlow starts."""

import json
import os
import sys
from pathlib import Path

from common.errors import BadInput


def choice() -> tuple[str, str]:
    """The framework that somebody chose for Keras, and where; by default TensorFlow."""
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend(), "here it"
    if chosen := os.environ.get("KERAS_BACKEND"):
        return chosen, "here it"
    home = "~" if os.access(os.path.expanduser("~"), os.W_OK) else "/tmp"  # as Keras finds it
    file = Path(os.environ.get("KERAS_HOME") or f"{home}/.keras", "keras.json").expanduser()
    try:
        return json.loads(file.read_bytes()).get("backend", "tensorflow"), f"by {file} it"
    except (OSError, ValueError, AttributeError):  # none, or none that Keras reads
        return "tensorflow", ""


# Keras 3 runs on several frameworks and reads its choice once, at import. A choice that somebody made
# is not changed: it is that of the whole process.
chosen, where = choice()
if chosen != "tensorflow":
    raise BadInput(
        f"resnet_tf needs Keras on TensorFlow, and {where} is on {chosen}; "
        "start Python with KERAS_BACKEND=tensorflow"
    )
if "keras" not in sys.modules:
    os.environ["KERAS_BACKEND"] = chosen
# TensorFlow's C++ prints pages of notices to standard error; what fails also raises an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
