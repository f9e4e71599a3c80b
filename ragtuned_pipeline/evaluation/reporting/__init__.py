"""The pages: what the numbers say, in words, plots and cases."""
