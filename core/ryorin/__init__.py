"""
Ryorin: serve a fine-tuned model together with its documents.

The core package is light: it knows the catalog, the prompt, the release and the model registry, and imports neither
torch, faiss, vllm nor trl at module level. `ryorin_index`, `ryorin_train` and `ryorin_serve` build on it.
"""

__version__ = "0.1.0"
