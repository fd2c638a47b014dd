//! martlet-agent-api.
