"""Reports as frozen dataclasses; the JSON schemas are generated from them, field docs included."""
