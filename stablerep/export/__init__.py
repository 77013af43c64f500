"""An encoder in the forms that others open: timm, Hugging Face, ONNX, TensorRT, the reference code.

Nothing is imported here: `--help` and a wrong flag must not wait seconds for what the work needs.
"""
