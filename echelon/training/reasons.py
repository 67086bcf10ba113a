"""What libraries raise over a model, in words for whoever named the model."""

from __future__ import annotations

MAX_REASON = 300
_SAFER = (
    "its weights are a pickle that holds more than tensors, which could run a program here and is not loaded"
)


def reason_of(error: Exception) -> str:
    """Why a library could not do it, one line without a full stop."""
    text = str(error).strip()
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"transformers does not know {text}, or misses it"
    if "Weights only load failed" in text:
        return f"{_SAFER}: take its safetensors files"
    if "contains custom code" in text:
        return "it brings code of its own: read the code, and set model.trust_remote_code: true"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # the first line may be a heading
    return said[:MAX_REASON].rstrip(" .:")
