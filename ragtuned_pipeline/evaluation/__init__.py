"""Asking every system the same questions, scoring the answers, and reporting what came of it."""
