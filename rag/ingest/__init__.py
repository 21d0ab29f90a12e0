"""Sources to chunks: pure functions that know no Ray, no database and no model."""
