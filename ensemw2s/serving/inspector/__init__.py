"""The page at ``/``: ask the served models, see who voted for which token, vote again with other weights."""
