//! What a learning switch knows.
