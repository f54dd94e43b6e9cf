"""What callbacks are made of: event files, the names of numbers, what trackers share."""
