"""Reports of win rates, ratings and diagnoses: tables, plots, pages, and the token-credit view."""
