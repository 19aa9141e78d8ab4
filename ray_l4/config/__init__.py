"""Settings a user can change: types, defaults, bounds, and the messages for invalid values."""
