"""Files: diffusers folders, safetensors and tokenizers, read and written without torch."""
