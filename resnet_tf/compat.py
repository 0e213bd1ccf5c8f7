"""What must be said before TensorFlow starts."""

import os

# Keras 3 runs on several frameworks and reads its choice once, at import.
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow's C++ prints pages of notices to standard error; what fails also raises an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
