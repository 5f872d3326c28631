"""What a verification leaves: the report, its page, its charts and its history."""
