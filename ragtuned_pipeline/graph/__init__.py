"""From text units to entities, relationships, communities and their reports."""
