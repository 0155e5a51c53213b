"""What the whole library stands on: devices, files, messages, learning-rate curves."""
