"""ONNX graphs, quantized graphs, runtime sessions, parity, verdict, model card."""
