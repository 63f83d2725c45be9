"""HTTP: metrics and health of agent and controller, in the clear or over TLS, to all or to those who may."""
