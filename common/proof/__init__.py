"""The proof: backends compared, ports verified, and the report of what was found."""
