"""What the whole library builds on; nothing here imports from above.

``devices``: where and in how many processes to compute, and memory. ``files``: whole files, a lock. ``weights``:
tensors and checkpoints in them. ``hashes``: of what is stored. ``chunks``: budgets of memory. ``messages``: parts of
error messages. ``schedules``: learning-rate curves. ``moved``: the message for modules that have moved.
"""
