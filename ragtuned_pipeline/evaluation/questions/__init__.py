"""The questions that every system is asked, made and drawn."""
