"""The artifact's side: its results, and its graphs opened, cut and looked into."""
