"""`publish`, `fetch` and `verify-artifact`: what goes out, what comes back, and what is refused in one line."""
