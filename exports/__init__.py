"""ONNX graphs, quantized graphs, runtime sessions, parity, verdict, model card."""

import os

# ONNX Runtime's official builds send usage statistics unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
