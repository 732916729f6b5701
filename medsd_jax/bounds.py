"""The largest sizes that may be asked for: beyond them a slip would end as a lack of memory.

They are no advice, and far above what is sensible; see cli/config_ranges.py for all of a recipe.
"""

MAX_IMAGES = 10**6
"""Of one call or data set: each is an entry in memory before the work begins."""
MAX_PHANTOMS = 10**5
"""Of a phantom data set: a million take minutes before the first is drawn."""
MAX_AT_ONCE = 4096
"""Images in one forward pass."""
MAX_PIXELS = 8192
"""Of an image along one side."""
MAX_FEATURES = 65536
"""Of one layer."""
MAX_GUIDANCE = 1000
"""Of either sign: papers use 4 to 10, and from about 100 on only black and white are left."""
