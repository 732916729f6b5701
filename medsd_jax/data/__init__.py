"""Images and their texts: sources, the patient split, prepared records, and the loader."""
