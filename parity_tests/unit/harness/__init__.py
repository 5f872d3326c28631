"""The harness itself: that it measures what it says, and that it cannot pass on nothing."""
