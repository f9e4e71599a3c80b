"""Who compares and grades answers, and how far that can be trusted."""
