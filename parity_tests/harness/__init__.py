"""What verifies an artifact: the cases, both sides, the checks, their judges and the evidence."""
