"""What launchers are made of: processes whose output goes to a log."""
